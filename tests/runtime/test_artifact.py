"""A compiled model: load never changes a result, to the bit; and what can go wrong while loading."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.errors import DeepZigError
from deepzig.runtime import Model, load
from deepzig.runtime.vm import VirtualMachine

VOCAB, PAGE = 611, 16
Array = np.ndarray


def table(model: Model, pages: Sequence[Sequence[int]]) -> Array:
    """A block table; short rows are filled with page 0."""
    width = max(map(len, pages))
    return np.array([[*row, *[0] * (width - len(row))] for row in pages], np.int32)


class Batch:
    """Sequences with pages of their own, run through `forward` together."""

    def __init__(self, model: Model, tokens: Sequence[Array], pages: Sequence[Sequence[int]]) -> None:
        self.model, self.tokens, self.table = model, tokens, table(model, pages)

    def run(self, spans: Sequence[tuple[int, int]], entry: str) -> list[Array]:
        """Logits of the rows [begin, end) of each sequence; empty spans bring no rows."""
        tokens = np.concatenate([t[b:e] for t, (b, e) in zip(self.tokens, spans, strict=True)])
        seq = np.concatenate([np.full(e - b, i) for i, (b, e) in enumerate(spans)])
        pos = np.concatenate([np.arange(b, e) for b, e in spans])
        logits = self.model.forward(tokens, seq, pos, self.table, np.arange(len(tokens)), entry=entry)
        return np.split(logits, np.cumsum([e - b for b, e in spans])[:-1])


@pytest.mark.parametrize("entry", ["prefill", "decode"])
def test_company_and_pages_do_not_matter(model: Model, entry: str) -> None:
    """A sequence alone in pages 0.., then among strangers of all lengths in scattered pages: the same bits."""
    rng = np.random.default_rng(1)
    tokens = [rng.integers(2, VOCAB, n) for n in (45, 70, 33, 20)]
    spans = [
        [(0, 31), (0, 5), (0, 33), (0, 1)],
        [(31, 32), (5, 64), (33, 33), (1, 19)],
        [(32, 45), (64, 70), (33, 33), (19, 20)],
    ]
    free = rng.permutation(np.arange(10, model.pool.count))
    pages = [free[0:3].tolist(), free[3:8].tolist(), free[8:11].tolist(), free[11:13].tolist()]
    batch = Batch(model, tokens, pages)
    together = [batch.run(span, entry) for span in spans]
    for i, sequence in enumerate(tokens):
        alone = Batch(model, [sequence], [list(range(9))])
        for step, span in enumerate(spans):
            if span[i][0] < span[i][1]:
                np.testing.assert_array_equal(alone.run([span[i]], entry)[0], together[step][i])


def test_generation_while_others_generate(model: Model) -> None:
    prompts = [f"{'x' * i} the quick brown fox {i}" for i in range(6)]
    options: dict[str, Any] = {"max_tokens": 20, "temperature": 0.9, "seed": 3, "logprobs": True, "ignore_eos": True}
    want = [model.generate(prompt, **options) for prompt in prompts]
    got: dict[int, Any] = {}

    def work(i: int) -> None:
        got[i] = model.generate(prompts[i], **options)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(6)] == want and model.pool.free == model.pool.count


PROGRAM = """
import hashlib, json, sys
import deepzig.runtime
with deepzig.runtime.load(sys.argv[1], threads=int(sys.argv[2]), cache_tokens=int(sys.argv[3])) as model:
    ids = list(range(2, 152))
    digest = hashlib.sha256(model.logits(ids).tobytes()).hexdigest()
    result = model.generate(ids[:70], max_tokens=24, temperature=1.0, seed=5, logprobs=True, ignore_eos=True)
    print(json.dumps([digest, result.token_ids, [p.logprob for p in result.logprobs]]))
"""


def python(program: str, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})


def test_threads_and_processes_do_not_matter(artifact: Path) -> None:
    """One thread, two, and two once more, in processes of their own without a compiler: the same bits."""
    runs = [python(PROGRAM, artifact, threads, tokens) for threads, tokens in ((1, 160), (2, 800), (2, 800))]
    assert not [run.stderr for run in runs if run.returncode]
    assert runs[0].stdout == runs[1].stdout == runs[2].stdout
    assert len(json.loads(runs[0].stdout)[1]) == 24


BOUND = """
import json, os, sys
import deepzig.runtime
with deepzig.runtime.load(sys.argv[1], threads=2) as model:
    model.logits(list(range(2, 90)))
    print(json.dumps([sorted(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")]))
"""


def test_threads_are_not_bound(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may run on every processor of the process: a bound one waits for whoever is on its own."""
    monkeypatch.delenv("TVM_BIND_THREADS", raising=False)
    run = python(BOUND, artifact)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert len(found) > 2 and all(places == sorted(os.sched_getaffinity(0)) for places in found)


def test_a_seed_says_the_same_twice(model: Model) -> None:
    options: dict[str, Any] = {"max_tokens": 30, "temperature": 1.2, "top_k": 50, "ignore_eos": True}
    one, two, other = (model.generate("Once upon", seed=s, **options) for s in (9, 9, 10))
    assert one == two and one.token_ids != other.token_ids
    pieces = list(model.stream("Once upon", seed=9, **options))
    assert "".join(p.text for p in pieces) == one.text and [p.token_id for p in pieces] == list(one.token_ids)
    assert pieces[-1].finish_reason == one.finish_reason == "length"


def test_several_choices_of_a_model(model: Model) -> None:
    """A choice does not notice those before it on the same pages: each is told by its log-probabilities."""
    prompt = list(range(2, 43))
    many = model.generate(prompt, n=3, max_tokens=20, temperature=1.0, seed=2, logprobs=True, ignore_eos=True)
    assert (
        many.choices[0]
        == model.generate(prompt, max_tokens=20, temperature=1.0, seed=2, logprobs=True, ignore_eos=True).choices[0]
    )
    for choice in many.choices:
        assert_logprobs(model, prompt, choice)


def assert_logprobs(model: Model, prompt: list[int], choice: Any) -> None:
    """Those of `logits`, within 1e-4: other rows per call take the other form of attention."""
    rows = model.logits([*prompt, *choice.token_ids]).astype(np.float64)[len(prompt) - 1 : -1]
    rows -= rows.max(1, keepdims=True)
    want = rows[np.arange(len(rows)), list(choice.token_ids)] - np.log(np.exp(rows).sum(1))
    np.testing.assert_allclose([p.logprob for p in choice.logprobs], want, rtol=0, atol=1e-4)


def test_logprobs_are_those_of_the_logits(model: Model) -> None:
    """Whatever edits and filters the drawing goes through."""
    prompt = list(range(5, 60))
    options: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "frequency_penalty": 1.0, "logit_bias": {77: 5}}
    result = model.generate(prompt, max_tokens=25, seed=1, logprobs=True, top_logprobs=4, ignore_eos=True, **options)
    assert_logprobs(model, prompt, result)
    assert result.logprobs is not None and all(
        len(p.top) == 4 and p.top[0][1] >= p.logprob - 1e-12 for p in result.logprobs
    )
    greedy = model.generate(prompt, max_tokens=9, logprobs=True, top_logprobs=1, ignore_eos=True)
    assert greedy.logprobs is not None and [p.top[0] for p in greedy.logprobs] == [
        (p.token_id, p.logprob) for p in greedy.logprobs
    ]


def test_two_artifacts_and_two_models_in_one_process(artifact: Path, model: Model, tmp_path: Path) -> None:
    shutil.copytree(artifact, tmp_path / "copy")
    want = model.generate("hello", max_tokens=12)
    with load(artifact, threads=2) as second, load(tmp_path / "copy", threads=2, cache_tokens=40) as third:
        assert third.context == 48
        for _ in range(2):
            for one in (second, model, third):
                assert one.generate("hello", max_tokens=12) == want
    assert model.generate("hello", max_tokens=12) == want


def test_a_closed_model(artifact: Path) -> None:
    loaded = load(artifact)
    stream = loaded.stream("hello", max_tokens=900, ignore_eos=True)
    next(stream)
    loaded.close()
    loaded.close()
    for use in (lambda: list(stream), lambda: loaded.generate("hello"), lambda: loaded.logits([5])):
        with pytest.raises(DeepZigError) as caught:
            use()
        assert str(caught.value) == f"the model is closed\n  at: {artifact}\n  fix: load it again"
    assert loaded.pool.free == loaded.pool.count


@pytest.mark.parametrize("tokens", [10**18, 10**30])
def test_a_cache_larger_than_memory(artifact: Path, tokens: int) -> None:
    with pytest.raises(DeepZigError) as caught:
        load(artifact, cache_tokens=tokens)
    assert str(caught.value) == (
        f"the cache does not fit in memory\n  at: cache of {tokens} tokens\n"
        "  fix: load the model with fewer cache_tokens"
    )


@pytest.mark.parametrize("value", [0, -5, 1.5, "many", True])
@pytest.mark.parametrize("name", ["threads", "cache_tokens"])
def test_wrong_loading_options(artifact: Path, name: str, value: Any) -> None:
    with pytest.raises(DeepZigError) as caught:
        load(artifact, **{name: value})
    assert str(caught.value) == f"{name} is {value!r}\n  at: option {name}\n  fix: give a whole number from 1"


def test_code_that_is_none(artifact: Path, tmp_path: Path) -> None:
    """Right in size and hash, but no shared object: three lines, and the process lives."""
    import hashlib

    copy, code = tmp_path / "copy", "code/native.so"
    shutil.copytree(artifact, copy)
    (copy / code).write_bytes(b"not a shared object")
    manifest = json.loads((copy / "manifest.json").read_text())
    digest = hashlib.sha256(b"not a shared object").hexdigest()
    manifest["files"][code] = {"size": 19, "sha256": digest}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DeepZigError) as caught:
        load(copy)
    assert caught.value.what.startswith("the artifact's code failed: ")
    assert (caught.value.where, caught.value.hint) == (f"{copy}, {code}", "compile the model again")


def test_a_full_check_reads_the_weights(artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    (weights,) = copy.glob("weights-*")
    data = bytearray(weights.read_bytes())
    data[-100] ^= 64
    weights.write_bytes(data)
    load(copy).close()
    with pytest.raises(DeepZigError, match="the file was changed"):
        load(copy, full_check=True)


INTERRUPTED = """
import os, signal, sys, threading
import deepzig.runtime
with deepzig.runtime.load(sys.argv[1], threads=1) as model:
    want = model.generate("hello", max_tokens=8, ignore_eos=True)
    call = model.backend.call
    timers = [threading.Timer(0.002, os.kill, (os.getpid(), signal.SIGINT))]
    def interrupting(entry, inputs):
        if timers:
            timers.pop().start()
        return call(entry, inputs)
    model.backend.call = interrupting
    try:
        while True:
            model.logits(list(range(2, 600)))
    except KeyboardInterrupt:
        pass
    model.backend.call = call
    assert model.pool.free == model.pool.count
    assert model.generate("hello", max_tokens=8, ignore_eos=True) == want
print("lives")
"""


def test_an_interrupt_in_the_middle_of_a_call(artifact: Path) -> None:
    """The call ends in its own thread; pages are back, and the next answer is what it was."""
    done = python(INTERRUPTED, artifact)
    assert (done.stdout, done.returncode) == ("lives\n", 0), done.stderr


def test_kernel_calls_can_be_watched(model: Model) -> None:
    """Each call before and after it, in the manifest's order, with tensors that are the kernel's own."""
    told: list[tuple[str, bool, list[tuple[int, ...]]]] = []
    vm = model.backend
    assert isinstance(vm, VirtualMachine)
    before = model.generate([3, 4, 5], max_tokens=1, ignore_eos=True).token_ids

    def observe(kernel: str, tensors: list[Any], early: bool) -> None:
        told.append((kernel, early, [t.shape for t in tensors]))
        if not early and kernel.startswith("embed"):
            tensors[-1][...] = 0

    with vm.watch(observe):
        model.logits([3, 4, 5])
    build = vm.artifact.build
    assert [k for k, early, _ in told if early] == [c.kernel for c in build.calls["decode"]]
    assert [k for k, early, _ in told if not early] == [c.kernel for c in build.calls["decode"]]
    assert all(shapes for _, _, shapes in told)
    told.clear()
    assert model.generate([3, 4, 5], max_tokens=1, ignore_eos=True).token_ids == before and not told


def test_a_watcher_that_fails(model: Model) -> None:
    vm = model.backend
    assert isinstance(vm, VirtualMachine)

    def fail(*_: Any) -> None:
        raise ValueError("no such thing")

    with pytest.raises(DeepZigError, match="no such thing"), vm.watch(fail):
        model.logits([3, 4])
    assert len(model.logits([3, 4])) == 2
