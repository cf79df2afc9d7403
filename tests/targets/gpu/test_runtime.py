"""Artifacts for GPUs, on software that stands for them: what the runtime does with memory that is not the CPU's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.artifacts import choice
from deepzig.artifacts.devices import Device, Gpu
from deepzig.errors import DeepZigError
from deepzig.runtime import Model, load
from deepzig.runtime.tensors import DeviceTensor
from deepzig.runtime.vm import VirtualMachine

from . import made_artifact
from .made_artifact import HIDDEN, VOCAB, logits, state


@pytest.fixture(autouse=True, scope="module")
def driver() -> Iterator[None]:
    """A machine with one GPU of CUDA."""

    def gpu(device: Device) -> Gpu:
        if device.index:
            raise DeepZigError("there is one GPU", f"device {device}", "choose cuda:0")
        return Gpu(device, "software", 1 << 34, (8, 6))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(choice, "cuda_gpu", gpu)
        yield


@pytest.fixture(scope="module", params=["cuda", "metal"])
def gpu_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_artifact.write(tmp_path_factory.mktemp("gpu") / request.param, request.param)


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
