"""The reference model in a worker of headless Chromium, and parts that the browser keeps."""

from __future__ import annotations

import json
from pathlib import Path

from deepzig.runtime import Model

from .browser import in_browser
from .test_browser import root
from .test_javascript import QUESTIONS, SHARD, bytes_to_read

__all__ = ["root"]

HELPERS = """
    import { DeepZigError, forget, load as loadHere } from "/web/src/index.js";
    import { load } from "/web/src/worker.js";
    const message = async (work) => {
      try { await work(); } catch (error) {
        return error instanceof DeepZigError ? error.message.replaceAll(location.origin, "") : error.name;
      }
    };
    const all = async (pieces) => {
      const list = [];
      for await (const piece of pieces) list.push(piece);
      return list;
    };
"""


def test_answers(root: Path, tmp_path: Path, model: Model, packages: Path) -> None:
    """Tokens, texts and chats are Python's; several at once; stops and limits."""
    tokens, chats, story, stopped, several = in_browser(root, tmp_path / "profile", f"""
        {HELPERS}
        const questions = {json.dumps(QUESTIONS)}.map((content) => [{{ role: "user", content }}]);
        const last = async (generator) => {{
          let text = "", next;
          while (!(next = await generator.next()).done) text += next.value;
          return [text, next.value];
        }};
        export default async function () {{
          const model = await load("my model");
          const chats = [];
          for (const question of questions) chats.push(await last(model.chat(question)));
          return [
            await all(model.generate("Hello", {{ maxTokens: 20, temperature: 0.8, seed: 2n ** 60n }})),
            chats,
            await last(model.stream("Once", {{ maxTokens: 12, ignoreEos: true }})),
            await last(model.chat(questions[0], {{ stop: ["1+3"] }})),
            await Promise.all(questions.map((question) => last(model.chat(question)))),
          ];
        }}
    """)  # fmt: skip
    results = [model.generate([{"role": "user", "content": q}]) for q in QUESTIONS]
    assert tokens == list(model.generate("Hello", max_tokens=20, temperature=0.8, seed=2**60).token_ids)
    assert chats == several == [[result.text, "stop"] for result in results]
    assert story == [model.generate("Once", max_tokens=12, ignore_eos=True).text, "length"]
    stop = model.generate([{"role": "user", "content": QUESTIONS[0]}], stop=["1+3"])
    assert stopped == [stop.text, "stop"] and len(stop.text) < len(chats[0][0])


def test_ends(root: Path, tmp_path: Path) -> None:
    """An answer is left early, or aborted; the worker still answers, until the model is closed."""
    told = in_browser(root, tmp_path / "profile", f"""
        {HELPERS}
        export default async function () {{
          const model = await load("my model", {{ cacheTokens: 128 }});
          const options = {{ ignoreEos: true }};
          const left = [];
          for await (const token of model.generate([5, 6, 7], options)) {{
            left.push(token);
            if (left.length === 3) break;
          }}
          const stop = new AbortController();
          const aborted = await message(async () => {{
            for await (const token of model.generate([5, 6, 7], {{ ...options, signal: stop.signal }})) stop.abort();
          }});
          const before = await message(() => model.generate([5], {{ signal: AbortSignal.abort() }}).next());
          const wrong = await message(() => model.generate([5], {{ temperature: 3 }}).next());
          const same = await all(model.generate([5, 6, 7], {{ ...options, maxTokens: 100 }}));
          const pending = model.generate([5], options);
          await pending.next();
          const waits = message(() => pending.next());
          model.close();
          return {{
            left, same, aborted, before, wrong, context: model.context, bytes: model.bytes > 2e7,
            closed: [await waits, await message(() => model.generate([5]).next())],
          }};
        }}
    """)  # fmt: skip
    closed = "the model is closed\n  at: /my%20model\n  fix: load it again"
    assert told["left"] == told["same"][:3] and len(told["same"]) == 100
    assert told["aborted"] == told["before"] == "AbortError"
    assert told["wrong"] == "temperature is 3\n  at: option temperature\n  fix: give a number from 0 to 2"
    assert told["context"] == 128 and told["bytes"] and told["closed"] == [closed, closed]


def test_loads_that_fail(root: Path, tmp_path: Path) -> None:
    """A damaged shard, a part that is not there, an abort, a worker that ends, a browser without workers."""
    data = bytearray((root / "my model" / SHARD).read_bytes())
    data[-100_000] ^= 16
    (root / "damaged").mkdir()
    for name in ("manifest.json", *json.loads((root / "my model" / "manifest.json").read_text())["files"]):
        target = root / "damaged" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data if name == SHARD else (root / "my model" / name).read_bytes())
    told = in_browser(root, tmp_path / "profile", f"""
        {HELPERS}
        export default async function () {{
          const stop = new AbortController();
          const onProgress = ({{ loaded }}) => {{ if (loaded > 500_000) stop.abort(); }};
          const told = [
            await message(() => load("damaged")),
            await message(() => load("/another/")),
            await message(() => load("my model", {{ signal: stop.signal, onProgress }})),
          ];
          const Worker = globalThis.Worker;
          globalThis.Worker = class extends Worker {{
            constructor() {{ super("data:text/javascript,throw new Error('no memory')", {{ type: "module" }}); }}
          }};
          told.push(await message(() => load("my model")));
          delete globalThis.Worker;
          told.push((await message(() => load("my model"))).split("\\n")[0]);
          return told;
        }}
    """)  # fmt: skip
    assert told == [
        "the file was changed: its SHA-256 differs from the manifest's\n"
        f"  at: /damaged/{SHARD}\n  fix: copy or compile the artifact again",
        "the server answers 404 File not found\n  at: /another/manifest.json\n  fix: check the address",
        "AbortError",
        "the worker failed: Uncaught Error: no memory\n  at: /my%20model\n"
        "  fix: load the model again, or in the page itself",
        "there are no workers",
    ]


def test_parts_are_kept(root: Path, tmp_path: Path) -> None:
    """For the next load, in whatever thread: after an abort the whole parts, and what was damaged is fetched again."""
    told = in_browser(root, tmp_path / "profile", f"""
        {HELPERS}
        const names = () => performance.getEntriesByType("resource").map(({{ name }}) => name.split("my%20model/")[1]);
        const parts = () => [...new Set(names().filter((name) => name))].sort();
        const fetched = async (work) => {{
          performance.clearResourceTimings();
          let last;
          await message(() => work((progress) => {{ last = progress; }}));
          return [parts(), last.loaded / last.total];
        }};
        export default async function () {{
          const stop = new AbortController();
          const abort = ({{ loaded }}) => {{ if (loaded > 500_000) stop.abort(); }};
          const loads = [
            await fetched((tell) => loadHere("my model", {{
              signal: stop.signal, onProgress: (progress) => {{ tell(progress); abort(progress); }},
            }})),
            await fetched((onProgress) => loadHere("my model", {{ onProgress }})),
            await fetched((onProgress) => loadHere("my model", {{ onProgress }})),
            await fetched((onProgress) => load("my model", {{ onProgress }})),
          ];
          const cache = await caches.open("deepzig");
          for (const key of await cache.keys()) {{
            if (key.url.includes("wasm.wasm")) await cache.put(key, new Response("damaged"));
          }}
          loads.push(await fetched((onProgress) => loadHere("my model", {{ onProgress }})));
          loads.push(await fetched((onProgress) => loadHere("my model", {{ onProgress, cache: false }})));
          const kept = (await cache.keys()).length;
          await forget("my model");
          return [loads, kept, (await cache.keys()).length];
        }}
    """)  # fmt: skip
    loads, kept, left = told
    texts, code = ["tokenizer.json", "tokenizer_config.json"], ["code/wasm.plan.json", "code/wasm.wasm"]
    everything = sorted([*code, "manifest.json", *texts, SHARD])
    whole = [name for name in everything if name != SHARD]  # what was aborted is listed late, if at all
    assert [name for name in loads[0][0] if name != SHARD] == whole
    assert [names for names, _ in loads[1:]] == [
        ["manifest.json", SHARD], ["manifest.json"], [], ["code/wasm.wasm", "manifest.json"], everything,
    ]  # fmt: skip
    assert 500_000 / bytes_to_read(root / "my model") < loads[0][1] < 1
    assert all(share == 1 for _, share in loads[1:]) and kept == 5 and left == 0
