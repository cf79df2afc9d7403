"""What a browser or node lacks: one message each; and parts that are kept, over a cache that can fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .browser import in_browser
from .javascript import run

UPDATE = "update it: Chrome 100, Firefox 104, Safari 16.4, node 18 and later have it"
TAKEN_AWAY = {
    "simd": ("WebAssembly.validate = () => false", "there is no WebAssembly with SIMD", UPDATE),
    "bigint": ("delete DataView.prototype.setBigInt64", "there are no integers of 64 bits", UPDATE),
    "streams": ("delete Response.prototype.body", "responses can't be read as they come", UPDATE),
    "abort": ("delete AbortSignal.prototype.throwIfAborted", "work can't be aborted", UPDATE),
    "hashes": (
        "Object.defineProperty(globalThis, 'crypto', { value: {} })",
        "pages that come over plain HTTP can't check hashes",
        "serve the page over HTTPS or from localhost, or load with verify: false",
    ),
    "cache": (
        "Object.defineProperty(globalThis, 'caches', { value: undefined })",
        "parts can't be kept: they are fetched anew for every load",
        "serve the page over HTTPS or from localhost, outside of private windows",
    ),
    "workers": ("delete globalThis.Worker", "there are no workers", "load the model in the page itself"),
}
"""Feature -> how it is taken away, and what is said then."""


def test_nothing_is_missing(node: str) -> None:
    """In node, but for what only browsers have."""
    assert run(node, "return missing().length", support="missing") == 0
    told = run(node, "return missing(given).map((error) => error.what)", ["webgpu", "simd"], support="missing")
    assert told == ["there is no WebGPU"]


@pytest.mark.parametrize("feature", TAKEN_AWAY)
def test_what_is_missing(feature: str, node: str) -> None:
    take, what, hint = TAKEN_AWAY[feature]
    body = f"{take}; const [one, ...more] = missing(given); return [one.what, one.hint, one.where, more.length];"
    told = run(node, body, [feature, "simd"] if feature != "simd" else ["simd"], support="missing")
    assert told[:2] == [what, hint] and told[2].lower().startswith("node") and told[3] == 0


def test_an_old_browser(tmp_path: Path) -> None:
    """Loading says so before it asks the server for anything."""
    needed = {name: row for name, row in TAKEN_AWAY.items() if name in ("simd", "bigint", "streams", "abort")}
    (tmp_path / "root").mkdir()
    told = in_browser(tmp_path / "root", tmp_path / "profile", f"""
        import {{ load }} from "/web/src/index.js";
        export default async function () {{
          const messages = [];
          for (const take of {json.dumps([take for take, _, _ in reversed(needed.values())])}) {{
            (0, eval)(take);
            await load("nowhere").catch(({{ message }}) => messages.push(message.replace(navigator.userAgent, "HERE")));
          }}
          return messages;
        }}
    """)  # fmt: skip
    assert told == [f"{what}\n  at: HERE\n  fix: {hint}" for _, what, hint in reversed(needed.values())]


CACHE = """
    const bytes = (text) => new TextEncoder().encode(text);
    const sha256 = async (data) => Buffer.from(await crypto.subtle.digest("SHA-256", data)).toString("hex");
    const stored = new Map();
    const storage = {
      match: async (url) => stored.get(url)?.clone(),
      put: async (url, response) => void stored.set(url, response),
      keys: async () => [...stored.keys()].map((url) => ({ url })),
      delete: async ({ url }) => stored.delete(url),
    };
    globalThis.caches = { open: async () => storage };
    const parts = { "a.bin": bytes("first"), "b/c d.bin": bytes("second") };
    const files = {};
    for (const [part, data] of Object.entries(parts)) files[part] = { size: data.length, sha256: await sha256(data) };
    const asked = [];
    const source = {
      name: "https://host/model",
      read: async (part) => { asked.push(part); return parts[part]; },
    };
    const cache = await PartCache.open(source.name);
    const read = async (part) => {
      asked.length = 0;
      let told = 0;
      const options = { cache, onProgress: (bytes) => { told += bytes; } };
      const data = await readPart(source, { files }, part, options);
      return [new TextDecoder().decode(data), [...asked], told];
    };
"""


def kept(node: str, body: str) -> Any:
    return run(node, CACHE + body, cache="PartCache", artifact="readPart")


def test_parts_are_kept(node: str) -> None:
    """Read once; what is kept is checked, and read again when it was damaged; it is told of like any other."""
    told = kept(node, """
        const told = [await read("a.bin"), await read("b/c d.bin"), await read("a.bin"), await read("b/c d.bin")];
        const [key] = stored.keys();
        stored.set(key, new Response(bytes("fIrst")));
        return [...told, await read("a.bin"), await read("a.bin"), stored.size];
    """)  # fmt: skip
    first, second = ["first", ["a.bin"], 0], ["second", ["b/c d.bin"], 0]
    again, second_again = ["first", [], 5], ["second", [], 6]
    assert told == [first, second, again, second_again, first, again, 2]


def test_what_is_wrong_is_not_kept(node: str) -> None:
    told = kept(node, """
        parts["a.bin"] = bytes("fIrst");
        return [await message(() => read("a.bin")), stored.size];
    """)  # fmt: skip
    assert told == [
        "the file was changed: its SHA-256 differs from the manifest's\n"
        "  at: https://host/model/a.bin\n  fix: copy or compile the artifact again",
        0,
    ]


@pytest.mark.parametrize("how", ["put", "match", "keys"])
def test_a_storage_that_fails(how: str, node: str) -> None:
    """A full disk is no error; nor is anything else that goes wrong there."""
    told = kept(node, f"""
        storage.{how} = async () => {{ throw new DOMException("full", "QuotaExceededError"); }};
        await cache.keepOnly(files);
        return [(await read("a.bin"))[0], (await read("a.bin"))[0]];
    """)  # fmt: skip
    assert told == ["first", "first"]


def test_no_storage(node: str) -> None:
    told = kept(node, """
        globalThis.caches = { open: async () => { throw new DOMException("private", "SecurityError"); } };
        const refused = await PartCache.open("https://host/model");
        globalThis.caches = undefined;
        return [refused === undefined, (await PartCache.open("https://host/model")) === undefined];
    """)  # fmt: skip
    assert told == [True, True]


def test_a_new_version_takes_the_place_of_the_old(node: str) -> None:
    """Of this artifact only, not of one in a folder of it."""
    told = kept(node, """
        const inner = new PartCache(storage, "https://host/model/inner");
        await inner.write("a.bin", "0", bytes("other"));
        await read("a.bin");
        await read("b/c d.bin");
        parts["a.bin"] = bytes("third");
        files["a.bin"] = { size: 5, sha256: await sha256(parts["a.bin"]) };
        await read("a.bin");
        const before = stored.size;
        await cache.keepOnly(files);
        const after = [...stored.keys()].map((url) => url.split("?")[0]);
        return [before, after, await read("a.bin")];
    """)  # fmt: skip
    folder = "https://host/model/"
    assert told == [4, ["https://host/model/inner/", folder, folder], ["third", [], 5]]
