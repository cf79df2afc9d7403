"""Artifacts for GPUs, on software that stands for them: what the runtime does with memory that is not the CPU's."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_ffi

from deepzig.artifacts.devices import Device
from deepzig.errors import DeepZigError
from deepzig.runtime import Model, load, memory
from deepzig.runtime.tensors import DeviceTensor
from deepzig.runtime.vm import VirtualMachine

from . import made_artifact
from .made_artifact import HIDDEN, VOCAB, logits, state


@pytest.fixture(scope="module")
def on_gpu(gpu_folder: Path) -> Iterator[Model]:
    with load(gpu_folder, cache_tokens=200) as model:
        yield model


def greedy(prompt: list[int], count: int) -> tuple[int, ...]:
    past = list(prompt)
    for _ in range(count):
        past.append(int(np.argmax(logits(past))))
    return tuple(past[len(prompt) :])


def machine(model: Model) -> VirtualMachine:
    assert isinstance(model.backend, VirtualMachine)
    return model.backend


PROMPT = [7, 3, 40, 2, 9, 9, 30, 11, 5, 12, 6]


def test_what_it_says(on_gpu: Model) -> None:
    """Also after other texts, of other lengths, whose calls were recorded in between."""
    for prompt in (PROMPT, PROMPT[:2], PROMPT, [5] * 23, PROMPT):
        result = on_gpu.generate(prompt, max_tokens=30, ignore_eos=True)
        assert result.token_ids == greedy(prompt, 30)
    wanted = np.array([logits(PROMPT[: i + 1]) for i in range(len(PROMPT))])
    got = on_gpu.logits(PROMPT)
    assert isinstance(got, np.ndarray) and np.array_equal(got, wanted)


def test_outputs_stay_on_the_device(on_gpu: Model) -> None:
    """They are passed on from there, and read as arrays are."""
    rows = {
        "tokens": np.array(PROMPT[:7]), "seq": np.zeros(7, int), "pos": np.arange(7), "block_table": [[3, 0]],
        "out_rows": np.array([6, 1, 4]),
    }  # fmt: skip
    scores, hidden = on_gpu.run("prefill", rows)
    assert isinstance(scores, DeviceTensor) and isinstance(hidden, DeviceTensor)
    assert (scores.shape, scores.ndim, scores.nbytes, len(scores)) == ((3, VOCAB), 2, 12 * VOCAB, 3)
    wanted = np.array([logits(PROMPT[: i + 1]) for i in (6, 1, 4)])
    assert np.array_equal(np.asarray(scores), wanted) and np.array_equal(np.asarray(scores[:2], np.float64), wanted[:2])
    states = np.repeat([[state(PROMPT[: i + 1])] for i in range(7)], HIDDEN, 1)
    assert np.array_equal(np.asarray(hidden), states)
    with pytest.raises(IndexError, match="only the first rows can be taken"):
        scores[1:]
    scores[...] = 7
    assert np.all(np.asarray(scores) == 7)


def test_inputs_have_fixed_places(on_gpu: Model) -> None:
    """Of replayed entry points, whatever is called in between, and whether they come from the CPU or are outputs."""
    held: Any = machine(on_gpu)._memory
    places: dict[tuple[str, tuple[int, ...]], set[int]] = {}
    put = held.put

    def watched(entry: str, spec: Any, value: Any) -> Any:
        tensor = put(entry, spec, value)
        if entry != "sample":
            places.setdefault((f"{entry}.{spec.name}", tuple(tensor.shape)), set()).add(tensor.data_ptr())
        return tensor

    held.put = watched
    try:
        for length in (3, 21, 3, 11):
            on_gpu.generate([5 + length] * length, max_tokens=20, ignore_eos=True, speculate=3)
    finally:
        held.put = put
    assert len(places) > 20 and {len(seen) for seen in places.values()} == {1}
    assert {"draft.hidden", "decode.block_table"} <= {name for name, _ in places}
    assert {shape[1] for name, shape in places if name.endswith("block_table")} <= {1, 2, 4, 8, 16}


def test_what_was_sent_is_not_sent_again(on_gpu: Model) -> None:
    """Of a token's calls there are three numbers that differ from the last: its id, its position, that of the next."""
    held: Any = machine(on_gpu)._memory
    fill, sent = held._fill, list[int]()

    def counted(place: Any, data: Any) -> None:
        sent.append(data.nbytes)
        fill(place, data)

    held._fill = counted
    try:
        on_gpu.generate([5, 6, 7, 8], max_tokens=3, ignore_eos=True)
        start = len(sent)
        on_gpu.generate([5, 6, 7, 8], max_tokens=3, ignore_eos=True)
    finally:
        held._fill = fill
    assert start < len(sent) <= start + 4 + 2 * 3 + 2 and set(sent[start:]) <= {4, 8, 16}


def test_guesses_change_nothing(on_gpu: Model) -> None:
    for options in ({}, {"temperature": 0.9, "seed": 5}, {"presence_penalty": 1.5, "logprobs": True}):
        plain = on_gpu.generate(PROMPT, max_tokens=40, ignore_eos=True, **options)
        guessed = on_gpu.generate(PROMPT, max_tokens=40, ignore_eos=True, speculate=3, **options)
        assert (guessed.token_ids, guessed.logprobs) == (plain.token_ids, plain.logprobs)
        assert guessed.guessed_tokens > 60 > guessed.accepted_tokens


def test_edits_and_logprobs(on_gpu: Model) -> None:
    """They are made from the model's own logits, on the CPU."""
    result = on_gpu.generate(PROMPT, max_tokens=6, ignore_eos=True, logit_bias={4: 100}, logprobs=True, top_logprobs=2)
    assert result.token_ids == (4,) * 6 and result.logprobs is not None
    for count, told in enumerate(result.logprobs):
        wide = logits([*PROMPT, *[4] * count]).astype(np.float64)
        assert told.logprob == pytest.approx(wide[4] - np.log(np.exp(wide).sum()), abs=1e-6)
        assert [token for token, _ in told.top] == np.argsort(-wide)[:2].tolist()


def test_logits_that_are_no_numbers(on_gpu: Model, gpu_folder: Path) -> None:
    """The op tells; logits are not looked at on the CPU."""
    vm = machine(on_gpu)

    def spoil(kernel: str, tensors: list[Any], before: bool) -> None:
        if kernel == "head_main" and not before and len(tensors[-1]):
            values = np.array(tensors[-1])
            values[-1, 3] = np.nan
            tensors[-1][...] = values

    with vm.watch(spoil), pytest.raises(DeepZigError) as caught:
        on_gpu.generate(PROMPT, max_tokens=3)
    assert str(caught.value) == (
        f"the model computed logits that are no numbers\n  at: {gpu_folder}\n  fix: compile with another --dtype"
    )
    assert on_gpu.generate(PROMPT, max_tokens=3, ignore_eos=True).token_ids == greedy(PROMPT, 3)


def test_watching(on_gpu: Model) -> None:
    """Every kernel is told of, in order, also of calls whose launches were recorded; what is written is seen by all."""
    vm = machine(on_gpu)
    rows = {
        "tokens": np.array([9]), "seq": np.zeros(1, int), "pos": np.zeros(1, int), "block_table": [[2]],
        "out_rows": np.zeros(1, int),
    }  # fmt: skip
    told: list[tuple[str, bool]] = []

    def observe(kernel: str, tensors: list[Any], before: bool) -> None:
        told.append((kernel, before))
        if kernel == "state" and not before:
            assert np.array_equal(np.asarray(tensors[-1]), np.full((1, HIDDEN), state([9])))
            tensors[-1][...] = 17

    for _ in range(2):
        assert np.array_equal(np.asarray(on_gpu.run("decode", rows)[0])[0], logits([9]))
    with vm.watch(observe):
        scores, hidden = on_gpu.run("decode", rows)
        assert np.all(np.asarray(hidden) == 17)
    assert told == [(call.kernel, b) for call in vm.artifact.build.calls["decode"] for b in (True, False)]
    assert np.array_equal(np.asarray(scores)[0], made_artifact.WEIGHT[17])
    assert np.array_equal(np.asarray(on_gpu.run("decode", rows)[0])[0], logits([9]))


def test_calls_from_several_threads(on_gpu: Model) -> None:
    prompts = [[i, *range(2, 2 + i)] for i in range(2, 10)]
    got: dict[int, tuple[int, ...]] = {}

    def work(i: int) -> None:
        got[i] = on_gpu.generate(prompts[i], max_tokens=9, ignore_eos=True).token_ids

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(len(prompts))] == [greedy(prompt, 9) for prompt in prompts]


def test_memory_that_is_too_small(gpu_folder: Path) -> None:
    with pytest.raises(DeepZigError) as caught:
        load(gpu_folder, cache_tokens=1 << 50)
    assert str(caught.value) == (
        f"the cache does not fit in memory\n  at: cache of {1 << 50} tokens\n"
        "  fix: load the model with fewer cache_tokens"
    )


def test_weights_are_copied_in_pieces(gpu_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PIECE", 1000)
    with load(gpu_folder, cache_tokens=300) as model:
        assert model.generate(PROMPT, max_tokens=9, ignore_eos=True).token_ids == greedy(PROMPT, 9)


def test_the_device_is_named(gpu_folder: Path, on_gpu: Model, caplog: pytest.LogCaptureFixture) -> None:
    kind = on_gpu.manifest.builds[0].device
    with caplog.at_level("INFO", "deepzig"), load(gpu_folder, cache_tokens=20, device=kind) as model:
        assert machine(model).artifact.device == Device(kind)
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].endswith(f"; chose build {kind} for the device {kind}:0")
    assert "copied 1 weights, 0.0 MB; the cache holds 5 pages" in messages
    wrong = {"cpu": f"the artifact is for the device {kind}, not for cpu", "tpu": "there is no device 'tpu'"}
    for device, what in wrong.items():
        with pytest.raises(DeepZigError) as caught:
            load(gpu_folder, device=device)
        assert caught.value.what == what
    with pytest.raises(DeepZigError, match=f"^there is (one GPU|no device {kind}:1)"):
        load(gpu_folder, device=f"{kind}:1")


def test_recorded_launches(gpu_folder: Path, on_gpu: Model) -> None:
    """They are replayed, but for an observer; others find the function that does it as it was (`on_gpu` loaded it)."""
    name = "vm.builtin.cuda_graph.run_or_capture"
    original, replays = tvm_ffi.get_global_func(name), list[int]()

    def counted(machine: Any, function: Any, arguments: Any, *key: Any) -> Any:
        replays.append(len(arguments))
        return original(machine, function, arguments, *key)

    tvm_ffi.register_global_func(name, counted, override=True)
    ours = tvm_ffi.get_global_func(name)
    try:
        with load(gpu_folder, cache_tokens=100) as model:
            assert tvm_ffi.get_global_func(name).same_as(ours)
            model.generate(PROMPT[:3], max_tokens=6, ignore_eos=True)
            seen = len(replays)
            with machine(model).watch(lambda *_: None):
                watched = model.generate(PROMPT[:3], max_tokens=6, ignore_eos=True)
            assert watched.token_ids == greedy(PROMPT[:3], 6) and len(replays) == seen
            model.generate(PROMPT[:3], max_tokens=6, ignore_eos=True)
            assert len(replays) == 2 * seen
            assert seen == (6 if model.manifest.builds[0].device == "cuda" else 0)
    finally:
        tvm_ffi.register_global_func(name, original, override=True)


PROGRAM = """
import sys
from deepzig.artifacts import choice
from deepzig.artifacts.devices import Gpu
from deepzig.runtime import load

choice.cuda_gpu = lambda device: Gpu(device, "software", 1 << 34, (9, 0))
for path in sys.argv[1:] * 2:
    with load(path, cache_tokens=100) as model:
        print(*model.generate([7, 3, 40], max_tokens=9, ignore_eos=True).token_ids)
assert not any(name == "tvm" or name.startswith("tvm.") for name in sys.modules)
libraries = {line.split()[-1] for line in open("/proc/self/maps") if "/libtvm_runtime" in line}
print(len(libraries))
"""


def test_without_a_compiler(gpu_folder: Path, tmp_path: Path) -> None:
    """In a process of its own, which loads the runtime library and its part for the device, each once."""
    shutil.copytree(gpu_folder, tmp_path / "copy")
    command = [sys.executable, "-P", "-c", PROGRAM, str(gpu_folder), str(tmp_path / "copy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = " ".join(map(str, greedy([7, 3, 40], 9)))
    assert done.stdout.splitlines() == [*[said] * 4, "2"], done.stderr
