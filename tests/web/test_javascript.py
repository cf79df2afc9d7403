"""The package for JavaScript, as programs for node use it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepzig import __version__
from deepzig.runtime import Model

from .javascript import WEB, run

SHARD = "weights-00001.safetensors"
QUESTIONS = ("What is 12 plus 30?", "Reverse the word lamp.")
SAMPLED = {"temperature": 0.9, "top_p": 0.9, "top_k": 40, "min_p": 0.02, "max_tokens": 24, "ignore_eos": True}
NAMES = {"top_p": "topP", "top_k": "topK", "min_p": "minP", "max_tokens": "maxTokens", "ignore_eos": "ignoreEos"}

Program = Callable[..., Any]


@pytest.fixture
def program(node: str, artifact: Path) -> Program:
    """Run the body of a program with `folder` and `given`; what it returns."""

    def with_folder(body: str, folder: Path = artifact, given: Any = None) -> Any:
        return run(node, f"const folder = {json.dumps(str(folder))}; {body}", given, node="load")

    return with_folder


def test_the_package() -> None:
    package = json.loads((WEB / "package.json").read_text())
    assert package["version"] == __version__ and package["type"] == "module"
    assert all((WEB / entry["default"]).is_file() for entry in package["exports"].values())
    assert all(re.fullmatch(r"[\d.]+", v) for v in package["dependencies"].values()), "versions are pinned"
    assert "resolved" not in (WEB / "package-lock.json").read_text(), "any registry will do"


def test_answers_are_those_of_python(program: Program, model: Model) -> None:
    """Greedy ones to the end token; sampled ones with seeds of all sizes; a prompt of several chunks."""
    prompts = [model.tokenizer.encode_chat([{"role": "user", "content": q}]) for q in QUESTIONS]
    prompts.append([5 + i * i % 500 for i in range(600)])
    seeds = ["7", "-3", str(2**63 + 12345)]
    options = {NAMES.get(name, name): value for name, value in SAMPLED.items()}
    greedy, sampled = program(
        """
        const model = await load(folder);
        const greedy = [], sampled = [];
        for (const prompt of given.prompts) greedy.push(await all(model.generate(prompt, { maxTokens: 40 })));
        for (const seed of given.seeds) {
          sampled.push(await all(model.generate(given.prompts[0], { ...given.options, seed: BigInt(seed) })));
        }
        return [greedy, sampled];
        """,
        given={"prompts": prompts, "seeds": seeds, "options": options},
    )
    assert greedy == [list(model.generate(prompt, max_tokens=40).token_ids) for prompt in prompts]
    assert sampled == [list(model.generate(prompts[0], seed=int(s), **SAMPLED).token_ids) for s in seeds]
    assert len({tuple(tokens) for tokens in sampled}) == 3


def test_pages_come_back(program: Program) -> None:
    """When an answer ends, is left early, is aborted, or finds the cache full."""
    told = program(
        """
        const model = await load(folder, { cacheTokens: 200 });
        const free = [model.engine.pool.free.length];
        await all(model.generate([5, 6, 7], { maxTokens: 90, ignoreEos: true }));
        free.push(model.engine.pool.free.length);
        for await (const token of model.generate([5, 6, 7], { ignoreEos: true })) break;
        free.push(model.engine.pool.free.length);
        const stop = new AbortController();
        const aborted = await message(async () => {
          for await (const token of model.generate([5, 6], { ignoreEos: true, signal: stop.signal })) stop.abort();
        });
        free.push(model.engine.pool.free.length);
        const held = model.generate(new Array(150).fill(9), { ignoreEos: true });
        await held.next();
        const full = await message(() => all(model.generate(new Array(150).fill(9))));
        const left = model.engine.pool.free.length;
        await held.return();
        return { free: [...free, model.engine.pool.free.length], left, aborted, full, context: model.context };
        """
    )
    assert told["free"] == [4] * 5 and told["left"] == 1 and told["aborted"] == "AbortError"
    assert told["context"] == 256
    assert told["full"] == (
        "the cache is full: 3 more pages are needed, 1 are free\n  at: cache of 256 tokens\n"
        "  fix: load the model with a larger cacheTokens"
    )


def test_what_does_not_fit(program: Program) -> None:
    told = program(
        """
        const model = await load(folder);
        const tries = [
          [[], {}], [new Array(1024).fill(1), {}], [[5, 512], {}], [[5], { temperature: 3 }], [[5], { topK: 1.5 }],
          [[5], { seed: 0.5 }], [[5], { maxTokens: "9" }],
        ];
        const errors = [];
        for (const [prompt, options] of tries) errors.push(await message(() => model.generate(prompt, options).next()));
        errors.push(await message(() => load(folder, { cacheTokens: 0 })));
        return errors;
        """
    )
    assert told == [
        "the prompt is empty\n  at: prompt\n  fix: give at least one token",
        "the prompt has 1024 tokens\n  at: prompt\n  fix: give at most 1023",
        "prompt has 512\n  at: prompt\n  fix: use 0 to 511",
        "temperature is 3\n  at: option temperature\n  fix: give a number from 0 to 2",
        "topK is 1.5\n  at: option topK\n  fix: give a whole number from 0 to 2147483647",
        "seed is 0.5\n  at: option seed\n  fix: give a whole number",
        "maxTokens is 9\n  at: option maxTokens\n  fix: give a whole number from 1",
        "cacheTokens is 0\n  at: option cacheTokens\n  fix: give a whole number from 1",
    ]


def test_loading_is_told_and_can_be_aborted(program: Program, artifact: Path) -> None:
    loaded, aborted = program(
        """
        let last;
        await load(folder, { onProgress: (progress) => { last = progress; } });
        const stop = new AbortController();
        const aborted = await message(() => load(folder, { signal: stop.signal, onProgress: () => stop.abort() }));
        return [last, aborted];
        """
    )
    assert loaded == {"loaded": bytes_to_read(artifact), "total": bytes_to_read(artifact)}
    assert aborted == "AbortError"


def bytes_to_read(artifact: Path) -> int:
    """Of all parts that a loader has a use for."""
    parts = ("code/wasm.wasm", "code/wasm.plan.json", SHARD, "tokenizer.json", "tokenizer_config.json")
    return sum((artifact / part).stat().st_size for part in parts)


def damaged(artifact: Path, out: Path, part: str, change: Callable[[bytes], bytes]) -> Path:
    shutil.copytree(artifact, out)
    (out / part).write_bytes(change((out / part).read_bytes()))
    return out



CHANGED = "the file was changed: its SHA-256 differs from the manifest's"


@pytest.mark.parametrize(
    ("part", "change", "what"),
    [
        (SHARD, lambda b: b[:-9] + bytes([b[-9] ^ 4]) + b[-8:], CHANGED),
        (SHARD, lambda b: b[:-1], "the file has 22836543 bytes, not 22836544"),
        ("code/wasm.wasm", lambda b: b[:-1] + bytes([b[-1] ^ 1]), CHANGED),
        ("code/wasm.plan.json", lambda b: b.replace(b"512", b"513"), CHANGED),
        ("manifest.json", lambda b: b"{", "the manifest is not JSON"),
        ("manifest.json", lambda b: b.replace(b'"format": 4', b'"format": 9'),
         "the artifact has format 9, this DeepZig reads 4"),
    ],
)  # fmt: skip
def test_a_damaged_part(
    program: Program, artifact: Path, tmp_path: Path, part: str, change: Callable[[bytes], bytes], what: str
) -> None:
    folder = damaged(artifact, tmp_path / "damaged", part, change)
    told = program("return message(() => load(folder));", folder).splitlines()
    assert told[:2] == [what, f"  at: {folder}/{part}"]
    assert told[2] in (
        "  fix: copy or compile the artifact again", "  fix: compile the model again",
        "  fix: compile the model again with this DeepZig",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda b: b[:8] + b"[" + b[9:],
         "the header of the weight file can't be read\n  at: FILE\n  fix: copy or compile the artifact again"),
        (lambda b: b[:7] + b"\x7f" + b[8:],
         "the header of the weight file can't be read\n  at: FILE\n  fix: copy or compile the artifact again"),
        (lambda b: b.replace(b'"lm_head.weight@columns"', b'"lm_head.weight@another"'),
         "a weight is not in the manifest\n  at: FILE, tensor lm_head.weight@another\n  fix: compile the model again"),
        (lambda b: b.replace(b'"lm_head.weight@columns"', b'"__metadata__"' + b" " * 10),
         "weights are missing\n  at: FOLDER\n  fix: copy or compile the artifact again"),
    ],
)  # fmt: skip
def test_a_weight_file_that_is_not_hashed(
    program: Program, artifact: Path, tmp_path: Path, change: Callable[[bytes], bytes], told: str
) -> None:
    folder = damaged(artifact, tmp_path / "damaged", SHARD, change)
    want = told.replace("FILE", f"{folder}/{SHARD}").replace("FOLDER", str(folder))
    assert program("return message(() => load(folder, { verify: false }));", folder) == want


def test_a_part_that_is_missing(program: Program, artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "missing"
    shutil.copytree(artifact, folder)
    (folder / SHARD).unlink()
    assert program("return message(() => load(folder));", folder) == (
        f"a part is missing\n  at: {folder}/{SHARD}\n  fix: copy or compile the artifact again"
    )
