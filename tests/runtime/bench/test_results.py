"""Medians and shares, from given times."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from deepzig.artifacts.manifest import EntryPoint, Manifest, TensorSpec
from deepzig.runtime.bench.cases import Case, Decode, Prefill
from deepzig.runtime.bench.report import digits, report
from deepzig.runtime.bench.results import Results, Samples, Setting, decode_bytes, prefill_flops, results
from deepzig.runtime.child import Usage
from deepzig.runtime.machine import Memory

from ..fake import manifest

SIZES = {"hidden_size": 7, "num_hidden_layers": 3, "num_attention_heads": 5, "qk_head_dim": 11, "v_head_dim": 13}
ACTIVE = {"active_bytes_per_token": 1000, "active_params_per_token": 4000}
SETTING = Setting("some/demo", "a build", 3, 4, "A CPU", 5, Memory(64 << 30, 32 << 30), ("decode batch 9: why",))


def made(memory: dict[str, int] = ACTIVE, **sizes: Any) -> Manifest:
    cache = (TensorSpec("kv", "bf16", ("pages", 4, 19)), TensorSpec("draft", "bf16", ("pages", 4, 19)))
    base = manifest(101)
    return replace(
        base, cache=cache, memory=memory, model={**base.model, **SIZES, **sizes},
        entry_points={"decode": EntryPoint((), ("kv",), (), ())},
    )  # fmt: skip


def test_bytes_of_a_decode() -> None:
    """At each step the weights, and 38 bytes for each of 8, 9, 10 and 11 tokens: the step's own is among them."""
    assert decode_bytes(made(), Decode(1, 7), 4) == 4 * 1000 + 38 * (8 + 9 + 10 + 11)
    assert decode_bytes(made(), Decode(1, 0), 1) == 1000 + 38
    assert decode_bytes(made(), Decode(2, 7), 4) is None
    assert decode_bytes(made({}), Decode(1, 7), 4) is None


def test_operations_of_a_prompt() -> None:
    """Row by row: what a token meets without the head, and attention to what is up to it; the last meets the head."""
    head = 101 * 7
    rows = [4000 - head + 3 * 5 * (11 + 13) * (row + 1) for row in range(6)]
    assert prefill_flops(made(), Prefill(6)) == 2 * (sum(rows) + head)
    assert prefill_flops(made({}), Prefill(6)) is None
    assert prefill_flops(made(v_head_dim=None), Prefill(6)) is None


def samples() -> Samples:
    return Samples(
        {Prefill(6): [0.5, 0.25, 2.0], Decode(1, 7): [0.02, 0.01, 0.04], Decode(2, 7): [0.03, 0.02]},
        [3e5, 1e5, 9e5], [4e5, 2e5, 3e5],
        [Usage(1.0, 0.75, 4_000_000, 1_000_000), Usage(1.0, 0.5, 3_000_000, 2_000_000), Usage(2.0, 0.25, None, None)],
    )  # fmt: skip


def found(**changes: Any) -> Results:
    return results(made(), SETTING, replace(samples(), **changes), 3)


def test_medians_and_shares() -> None:
    prefill, one, two = found().speeds
    assert prefill.case == Prefill(6) and prefill.tokens_per_second == 6 / 0.5
    flops = prefill_flops(made(), Prefill(6))
    assert flops is not None and prefill.share == pytest.approx(flops / 0.5 / 3e5, rel=1e-12)
    assert one.tokens_per_second == 4 / 0.02 and one.seconds == (0.02, 0.01, 0.04)
    assert one.share == pytest.approx(4 * (1000 + 38 * 9.5) / 0.02 / 3e5, rel=1e-12)
    assert two.tokens_per_second == pytest.approx(2 * 4 / 0.025) and two.share is None
    whole = found()
    assert (whole.bandwidth, whole.gemm, whole.first_token) == (3e5, 3e5, 0.5)
    assert (whole.peak_bytes, whole.peak_private_bytes) == (4_000_000, 2_000_000)


def test_absurd_sizes() -> None:
    for memory in ({name: 10**400 for name in ACTIVE}, {name: 0 for name in ACTIVE}):
        shares = [speed.share for speed in results(made(memory), SETTING, samples(), 3).speeds]
        assert len(shares) == 3 and shares.count(None) == (3 if memory["active_bytes_per_token"] else 1)


def test_what_was_not_reached() -> None:
    early = found(seconds={Decode(1, 7): [0.02]}, bandwidth=[], gemm=[], first=[])
    assert [s.share for s in early.speeds] == [None] and early.speeds[0].tokens_per_second == 200
    assert {early.bandwidth, early.gemm, early.first_token, early.peak_bytes, early.peak_private_bytes} == {None}


def test_json() -> None:
    told = json.loads(json.dumps(found().to_json()))
    assert told["machine"] == {
        "cpu": "A CPU", "cores": 5, "ram_bytes": 64 << 30, "available_bytes": 32 << 30,
        "bandwidth_bytes_per_second": 3e5, "gemm_flops_per_second": 3e5, "device": "cpu", "gpu": None,
        "gpu_memory_bytes": None,
    }  # fmt: skip
    assert told["prefill"] == [
        {"prompt": 6, "tokens_per_second": 12, "share_of_gemm": found().speeds[0].share, "seconds": [0.5, 0.25, 2.0]}
    ]
    assert [(d["batch"], d["depth"], d["share_of_bandwidth"] is None) for d in told["decode"]] == [
        (1, 7, False), (2, 7, True)
    ]  # fmt: skip
    assert told["complete"] is True and told["rounds"] == 3 and told["skipped"] == ["decode batch 9: why"]
    assert (told["first_token_seconds"], told["peak_bytes"], told["peak_private_bytes"]) == (0.5, 4000000, 2000000)


REPORT = """\
some/demo: build a build, 3 of 5 cores of A CPU; medians of 3 rounds

             batch  depth  tokens/s  ms/token  of bandwidth  of f32 product
  prefill 6                      12      83.3                          37 %
  decode         1      7       200         5          91 %
  decode         2      7       320      6.25

first token from process start        0.5 s
peak memory of that process             4 MB
of it private, not mapped files         2 MB
memory read by this machine        0.0003 GB/s
f32 product by this machine        0.0003 GFLOP/s

skipped decode batch 9: why"""


def test_report() -> None:
    assert report(found()) == REPORT


def test_report_of_an_interrupted_run() -> None:
    early = replace(found(bandwidth=[], gemm=[], first=[]), rounds=1, complete=False)
    assert report(early).splitlines() == [
        "some/demo: build a build, 3 of 5 cores of A CPU; medians of 1 round",
        "interrupted: not every case has as many rounds",
        "",
        "             batch  depth  tokens/s  ms/token  of bandwidth  of f32 product",
        "  prefill 6                      12      83.3",
        "  decode         1      7       200         5",
        "  decode         2      7       320      6.25",
        "",
        "skipped decode batch 9: why",
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(0.01234, "0.0123"), (1.0, "1"), (99.94, "99.9"), (99.96, "100"), (12345.6, "12346")]
)
def test_digits(value: float, text: str) -> None:
    assert digits(value) == text


def test_cases_are_named() -> None:
    cases: list[Case] = [Prefill(512), Decode(4, 1024)]
    assert [*map(str, cases)] == ["prefill 512", "decode batch 4 depth 1024"]
