"""A device's memory: whatever it holds, answers and checks are those of the CPU's. Here the device is the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.artifacts.devices import HOST
from deepzig.artifacts.manifest import TensorSpec
from deepzig.artifacts.reader import open_artifact
from deepzig.errors import DeepZigError
from deepzig.runtime import Model, load, memory
from deepzig.runtime.memory import DeviceMemory
from deepzig.runtime.tensors import DeviceTensor
from deepzig.runtime.verify import read_vectors, replay
from deepzig.runtime.vm import VirtualMachine


@pytest.fixture(scope="module")
def as_device() -> Iterator[None]:
    """Every virtual machine that is made has its tensors in a device's memory, though the device is the CPU."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(memory, "memory_of", DeviceMemory)
        yield


@pytest.fixture(scope="module")
def far(artifact: Path, model: Model, as_device: None) -> Iterator[Model]:
    with load(artifact, threads=2, cache_tokens=1500) as loaded:
        yield loaded


def test_answers(model: Model, far: Model) -> None:
    prompt = list(range(5, 100, 7))
    for options in ({}, {"temperature": 0.8, "seed": 4, "top_p": 0.9}, {"frequency_penalty": 0.7, "logprobs": True}):
        got, want = (m.generate(prompt, max_tokens=20, ignore_eos=True, n=2, **options) for m in (far, model))
        assert got == want
    assert np.array_equal(far.logits(prompt), model.logits(prompt))


def test_verdicts(artifact: Path, far: Model) -> None:
    """Values that are compared are copied to the CPU, and those that are forced are copied back."""
    opened = open_artifact(artifact)
    vectors = read_vectors(opened)
    got = replay(opened, vectors, 2)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(memory, "memory_of", lambda *_: memory.HostMemory())
        want = replay(opened, vectors, 2)
    assert got == want and got.findings and not got.wrong
    spoilt = [replace(call, sketches={k: replace(s, norm=2 * s.norm) for k, s in call.sketches.items()})
              for call in vectors.calls]  # fmt: skip
    assert len(replay(opened, replace(vectors, calls=tuple(spoilt)), 2).wrong) > 10


def held(model: Model) -> Any:
    assert isinstance(model.backend, VirtualMachine)
    return model.backend._memory


SPEC = TensorSpec("x", "f32", ("n", "m"))


@pytest.mark.parametrize("shape", [(3, 5), (0, 5), (700, 13)])
def test_inputs(shape: tuple[int, ...], far: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any size and order, in pieces; what is sent once more is the same tensor unless it is large or differs."""
    monkeypatch.setattr(memory, "PIECE", 1024)
    place = held(far)
    given = np.random.default_rng(3).standard_normal(shape)

    def put(array: Any) -> Any:
        return place.run(lambda: place.put("an entry", SPEC, array))

    first = put(given.astype(np.float32))
    assert np.array_equal(np.asarray(DeviceTensor(place, first)), given.astype(np.float32))
    again = put(given)
    assert again is first or given.size > 1000
    turned = put(given.T)
    assert tuple(turned.shape) == shape[::-1] and turned.data_ptr() == first.data_ptr()
    assert np.array_equal(np.asarray(DeviceTensor(place, turned)), given.T.astype(np.float32))


def test_zeros(far: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PIECE", 100)
    place = held(far)
    for dtype, want in (("f32", np.float32), ("bf16", np.uint16), ("i8", np.int8)):
        made = np.asarray(DeviceTensor(place, place.run(lambda dtype=dtype: place.zeros((7, 41), dtype))))
        assert made.dtype == want and made.shape == (7, 41) and not made.any()


def test_block_tables_have_few_shapes() -> None:
    for columns, width in ((1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, 16)):
        table = np.random.default_rng(columns).integers(1, 99, (3, columns), np.int32)
        made = memory.padded(table)
        assert made.shape == (3, width) and np.array_equal(made[:, :columns], table) and not made[:, columns:].any()
        assert made.dtype == np.int32


def test_a_full_device(far: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    place = held(far)

    def allocate(*_: Any) -> None:
        raise RuntimeError("CUDA: out of memory")

    monkeypatch.setattr(place, "_allocate", allocate)
    monkeypatch.setattr(place, "_places", {})
    with pytest.raises(DeepZigError) as caught:
        far.generate([5], max_tokens=1)
    assert str(caught.value) == (
        f"the memory of the device cpu is full\n  at: {far.path}\n  fix: load the model with fewer cache_tokens"
    )


def test_no_room_for_weights(artifact: Path, far: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceMemory, "_empty", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
    with pytest.raises(DeepZigError) as caught:
        load(artifact, threads=2)
    assert str(caught.value) == (
        "the weights do not fit in memory\n  at: 0.0 GB of weights on the device cpu\n"
        "  fix: choose a device with more memory, or compile the model with --quant"
    )


def test_a_device_that_the_library_does_not_find(far: Model) -> None:
    with pytest.raises(DeepZigError) as caught:
        DeviceMemory(replace(HOST, kind="metal", index=3), lambda work: work(), ())
    assert str(caught.value) == (
        "TVM's runtime library finds no device metal:3\n  at: device metal:3\n"
        "  fix: update its driver, or choose another device"
    )


def test_a_closed_model(artifact: Path, as_device: None) -> None:
    """Its outputs can't be read any more."""
    with load(artifact, threads=2, cache_tokens=100) as closed:
        zero = np.zeros(1, np.int32)
        given = {"tokens": zero, "seq": zero, "pos": zero, "block_table": zero[None], "out_rows": zero}
        logits, *_ = closed.run("decode", given)
    with pytest.raises(DeepZigError, match="the model is closed"):
        np.asarray(logits)
    with pytest.raises(DeepZigError, match="the model is closed"):
        logits[:1]
