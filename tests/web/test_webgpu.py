"""The reference model on WebGPU in headless Chromium: the answers of this machine's own code."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.artifacts.reader import open_artifact
from deepzig.compiler.driver import compile_model
from deepzig.compiler.options import Options
from deepzig.errors import DeepZigError
from deepzig.models.reference.corpus import heldout
from deepzig.runtime import Model, load
from deepzig.runtime.chromium import ChromiumMachine
from deepzig.runtime.verify import check, read_vectors, replay
from deepzig.web import SERVE

from .browser import BROWSER, in_browser
from .conftest import REFERENCE

TOLERANCE = 2e-5
"""f32, norm-relative."""
SECONDS = 400
"""Software compiles the shaders, on a machine that may do other things."""
MOST_CODE = 400_000
"""Bytes of what a page fetches beside weights."""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def gpu(gpu_artifact: Path) -> Iterator[Model]:
    """The model in a page that this process asks."""
    with load(gpu_artifact, cache_tokens=8000) as loaded:
        yield loaded


@pytest.fixture
def root(gpu_artifact: Path, tmp_path: Path) -> Path:
    shutil.copytree(gpu_artifact, tmp_path / "root" / "model")
    return tmp_path / "root"


def prompts(model: Model, count: int) -> list[list[int]]:
    questions = heldout(None, 8)[:count]
    assert len(questions) == count
    return [model.tokenizer.encode_chat([{"role": "user", "content": q.question}]) for q in questions]


def answers(root: Path, tmp_path: Path, given: list[list[int]], options: dict[str, Any]) -> Any:
    return in_browser(root, tmp_path / "profile", f"""
        import {{ load }} from "/web/src/index.js";
        export default async function () {{
          const model = await load("model", {{ device: "webgpu" }});
          const answers = [];
          for (const prompt of {json.dumps(given)}) {{
            const answer = [];
            for await (const token of model.generate(prompt, {json.dumps(options)})) answer.push(token);
            answers.push(answer);
          }}
          return answers;
        }}
    """, SECONDS)  # fmt: skip


@pytest.mark.slow
def test_answers_in_a_page(root: Path, tmp_path: Path, native: Model) -> None:
    given = prompts(native, 5)
    got = answers(root, tmp_path, given, {"maxTokens": 96})
    assert got == [list(native.generate(prompt, max_tokens=96).token_ids) for prompt in given]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_100_answers(gpu: Model, native: Model, part: int) -> None:
    """In parts, since software takes seconds for an answer; who shares a step changes none."""
    given = prompts(native, 100)[part::4]
    ours, theirs = ([m.submit(prompt, max_tokens=96) for prompt in given] for m in (gpu, native))
    assert [a.result().token_ids for a in ours] == [a.result().token_ids for a in theirs]


def rows(model: Model, count: int, seed: int, begin: int = 0) -> dict[str, Any]:
    """The inputs of a call with random tokens of one sequence, on scattered pages; all rows are wanted."""
    rng = np.random.default_rng(seed)
    return {
        "tokens": rng.integers(0, 512, count).astype(np.int32), "seq": np.zeros(count, np.int32),
        "pos": np.arange(begin, begin + count, dtype=np.int32),
        "block_table": rng.permutation(model.pool.count)[None, :9].astype(np.int32),
        "out_rows": np.arange(count, dtype=np.int32),
    }  # fmt: skip


@pytest.mark.slow
def test_logits_are_those_of_native_code(gpu: Model, native: Model) -> None:
    """Calls of many sizes, one after the other: dispatches are made anew, and caches stay."""
    for count, begin in ((300, 0), (1, 300), (7, 301), (1, 308), (40, 309), (2, 530)):
        given = rows(native, count, 5, begin)
        entry = "prefill" if count > 32 else "decode"
        for ours, theirs in zip(*(m.backend.call(entry, given) for m in (gpu, native)), strict=True):
            ours, theirs = np.asarray(ours), np.asarray(theirs)
            assert ours.shape == theirs.shape
            assert np.linalg.norm(ours - theirs) <= TOLERANCE * np.linalg.norm(theirs)


@pytest.mark.slow
def test_sampling_draws_the_same_tokens(gpu: Model, native: Model) -> None:
    options = {"temperature": 0.8, "top_p": 0.95, "top_k": 50, "min_p": 0.01, "seed": 11, "n": 2, "max_tokens": 12}
    ours, theirs = (m.generate("Hello", **options) for m in (gpu, native))
    assert ours.choices == theirs.choices and ours.choices[0] != ours.choices[1]
    edited = {"repetition_penalty": 1.3, "logit_bias": {5: 3}, "logprobs": True, "max_tokens": 4}
    ours, theirs = (m.generate("Hello", **edited) for m in (gpu, native))
    assert ours.token_ids == theirs.token_ids and ours.logprobs and theirs.logprobs
    assert [a.logprob for a in ours.logprobs] == pytest.approx([b.logprob for b in theirs.logprobs], abs=1e-4)


@pytest.mark.slow
def test_pages_are_copied_and_kept(gpu: Model) -> None:
    """A page that is copied on the GPU holds what the first does; what is read can be put back."""
    machine = gpu.backend
    assert isinstance(machine, ChromiumMachine)
    gpu.backend.call("prefill", {**rows(gpu, 40, 8), "block_table": np.array([[3]], np.int32)})
    before = machine.read_page(3)
    assert any(data.any() for data in before.values())
    machine.copy_pages([(3, 5)])
    assert all(np.array_equal(data, before[name]) for name, data in machine.read_page(5).items())
    machine.write_page(3, {name: np.zeros_like(data) for name, data in before.items()})
    assert not any(data.any() for data in machine.read_page(3).values())
    assert all(np.array_equal(data, before[name]) for name, data in machine.read_page(5).items())


@pytest.mark.slow
def test_what_the_page_ends_with(gpu_artifact: Path, gpu: Model) -> None:
    with load(gpu_artifact, cache_tokens=100) as other:
        assert isinstance(other.backend, ChromiumMachine)
        os.kill(other.backend._process.pid, 9)
        with pytest.raises(DeepZigError) as caught:
            other.generate("Hello", max_tokens=2)
        assert str(caught.value) == (
            f"Chromium ended\n  at: {gpu_artifact}\n  fix: load the model with fewer cache_tokens"
        )  # fmt: skip
    with pytest.raises(DeepZigError) as caught:
        other.generate("Hello", max_tokens=2)
    assert str(caught.value) == f"the model is closed\n  at: {gpu_artifact}\n  fix: load it again"


def test_without_chromium(gpu_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeepZigError) as caught:
        load(gpu_artifact)
    assert str(caught.value) == (
        f"the artifact is for WebGPU, and there is no Chromium to run it\n  at: {gpu_artifact}\n"
        "  fix: install Chromium or Chrome, open the artifact in a page, or compile the model for this machine"
    )


@pytest.mark.slow
def test_commands(gpu_artifact: Path, cli: Any) -> None:
    code, out, _ = cli("verify", gpu_artifact)
    assert code == 0 and out.startswith(
        "ok: build webgpu, all files, 4 of 4 layers, 96 values of prefill, decode, draft"
    )
    code, out, _ = cli("chat", gpu_artifact, stdin="Reverse the word lamp.\n/exit\n")
    assert code == 0 and out == "pmal\n"


def test_inspect(gpu_artifact: Path, cli: Any) -> None:
    code, out, _ = cli("inspect", gpu_artifact)
    assert code == 0 and "runs here: yes, build webgpu on webgpu:0" in out and "copied to webgpu:0" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"dtype": "bf16"}, {"dtype": "f16"}, {"dtype": "f32", "quant": "q8", "cache": "q8"}, {"quant": "q4"}],
    ids=lambda o: "-".join(o.values()),
)
def test_every_element_type(options: dict[str, str], tmp_path: Path) -> None:
    """The self-check vectors of the interpreter, and the size of the code."""
    compile_model(REFERENCE, tmp_path / "out", Options(target="webgpu", **options))  # type: ignore[arg-type]
    opened = open_artifact(tmp_path / "out", full=True)
    check(opened, replay(opened, read_vectors(opened)))
    assert code_bytes(tmp_path / "out") < MOST_CODE


def code_bytes(artifact: Path) -> int:
    """Bytes of the shaders, the plan and all of the package's JavaScript."""
    build = open_artifact(artifact).build
    parts = [artifact / part for part in build.parts]
    size = sum(file.stat().st_size for file in (*parts, *SERVE.parent.glob("*.js")))
    print(f"code without weights: {size} bytes")
    return size


def test_code_is_small(gpu_artifact: Path) -> None:
    assert code_bytes(gpu_artifact) < MOST_CODE


FAKES = """
    const fake = (gpu) => Object.defineProperty(navigator, "gpu", { value: gpu, configurable: true });
    const real = navigator.gpu;
    const message = async (work) => {
      try { await work(); } catch (error) {
        return error instanceof DeepZigError ? error.message.replaceAll(location.origin, "") : String(error.stack);
      }
    };
"""


def test_what_a_browser_lacks(root: Path, tmp_path: Path) -> None:
    """WebGPU, an adapter, a limit, a device, or room."""
    told = in_browser(root, tmp_path / "profile", f"""
        import {{ DeepZigError, load }} from "/web/src/index.js";
        {FAKES}
        export default async function () {{
          const told = [];
          fake(undefined);
          told.push(await message(() => load("model")));
          fake({{ requestAdapter: async () => null }});
          told.push(await message(() => load("model")));
          const limits = {{ maxComputeInvocationsPerWorkgroup: 128 }};
          fake({{ requestAdapter: async () => ({{ limits }}) }});
          told.push(await message(() => load("model")));
          const adapter = await real.requestAdapter();
          const requestDevice = async () => {{ throw new Error("no more devices"); }};
          fake({{ requestAdapter: async () => ({{ limits: adapter.limits, requestDevice }}) }});
          told.push(await message(() => load("model")));
          fake(real);
          told.push(await message(() => load("model", {{ cacheTokens: 1e8 }})));
          told.push(await message(() => load("model", {{ device: "wasm" }})));
          told.push(await message(() => load("model", {{ device: "cuda" }})));
          return told;
        }}
    """)  # fmt: skip
    where, other = "/model/code/webgpu.json", "update the browser and the GPU's driver, or compile with --target wasm"
    smaller = "load with a smaller cacheTokens, or compile with --target webgpu:limits=FILE for this GPU"
    nothing, no_adapter, limit, no_device, cache, wasm, cuda = told
    assert re.fullmatch(
        r"there is no WebGPU\n  at: Mozilla/.*\n  fix: use a browser with WebGPU over HTTPS or from localhost, or an "
        "artifact for WebAssembly", nothing,
    )  # fmt: skip
    assert no_adapter == f"the browser has no GPU for WebGPU\n  at: {where}\n  fix: {other}"
    assert limit == (
        f"the GPU's maxComputeInvocationsPerWorkgroup is 128, and 256 is needed\n  at: {where}\n  fix: {smaller}"
    )
    assert no_device == f"the GPU can't be used: no more devices\n  at: {where}\n  fix: {other}"
    pattern = rf"the GPU's maxBufferSize is \d+, and \d+ is needed\n  at: {where}\n  fix: {smaller}"
    assert re.fullmatch(pattern, cache)
    assert wasm == "the artifact is for webgpu\n  at: /model\n  fix: deepzig-compile MODEL --target wasm -o DIR"
    assert cuda == 'there is no device "cuda"\n  at: option device\n  fix: choose from auto, wasm, webgpu'


@pytest.mark.slow
def test_a_device_that_is_lost(root: Path, tmp_path: Path) -> None:
    """In the middle of an answer, and before the next; and a shader that the browser refuses."""
    lost, again, refused = in_browser(root, tmp_path / "profile", f"""
        import {{ DeepZigError, load }} from "/web/src/index.js";
        {FAKES}
        export default async function () {{
          const model = await load("model", {{ cacheTokens: 200 }});
          const {{ device }} = model.engine.executor.memory;
          const lost = await message(async () => {{
            for await (const token of model.generate([5, 6, 7], {{ ignoreEos: true }})) device.destroy();
          }});
          const again = await message(() => model.generate([5, 6, 7]).next());
          const make = GPUDevice.prototype.createShaderModule;
          GPUDevice.prototype.createShaderModule = function ({{ label }}) {{
            return make.call(this, {{ label, code: "fn main(" }});
          }};
          return [lost, again, await message(() => load("model"))];
        }}
    """, SECONDS)  # fmt: skip
    assert re.fullmatch(r"the GPU was lost: .+\n  at: WebGPU\n  fix: load the model again", lost)
    assert again == lost
    assert re.fullmatch(
        r"the browser refuses the kernel \w+: .+\n  at: /model/code/webgpu.json\n  fix: update the browser and the "
        "GPU's driver, or compile with --target wasm", refused, re.S,
    )  # fmt: skip
