"""The timeline and its tables, from kernel calls that are told by hand with a clock that counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest

from deepzig.artifacts.manifest import Build, Call
from deepzig.errors import DeepZigError
from deepzig.runtime.bench import trace
from deepzig.runtime.bench.trace import Recorder, accounts, chrome_trace, kernel_table


def call(op: str, layer: int | None) -> Call:
    return Call(f"{op}_kernel", op, layer, f"definition.py:{len(op)}", ())


CALLS = {
    "decode": (
        call("embed", None), call("proj", 0), call("mlp", 0), call("proj", 1), call("moe", 1), call("proj", 2),
        call("moe", 2), call("proj", 3), call("mlp", 3), call("head", None),
    ),
    "sample": (call("sample", None),),
}  # fmt: skip


def build(calls: Mapping[str, tuple[Call, ...]]) -> Build:
    return Build("a build", "", "", frozenset(), "", "", calls)


KERNELS = [c.kernel for c in CALLS["decode"]]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look is 1, 2, 3, ... microseconds after the one before."""
    now = looks = 0

    def look() -> int:
        nonlocal now, looks
        looks += 1
        now += 1000 * looks
        return now

    monkeypatch.setattr(trace, "perf_counter_ns", look)


def run(recorder: Recorder, entry: str, kernels: list[str]) -> None:
    with recorder.around(entry):
        for kernel in kernels:
            recorder(kernel, [], True)
            recorder(kernel, [], False)


def recorded() -> Recorder:
    recorder = Recorder(CALLS, "demo")
    for case, steps in (("first", 1), ("second", 2)):
        with recorder.case(case):
            for _ in range(steps):
                run(recorder, "decode", KERNELS)
                run(recorder, "sample", ["sample_kernel"])
    return recorder


def test_every_call_has_its_place() -> None:
    spans = [s for s in recorded().spans if s.kind == "kernel"]
    assert [s.call for s in spans] == 3 * [*CALLS["decode"], *CALLS["sample"]]
    assert all(s.end > s.begin for s in spans)


def test_the_trace_nests_and_covers() -> None:
    """Complete events of one track: two are apart or one within the other; a kernel is in an entry, that in a case."""
    recorder = recorded()
    told = json.loads(chrome_trace(recorder.spans, "demo"))
    events: list[dict[str, Any]] = [e for e in told["traceEvents"] if e["ph"] == "X"]
    assert len(events) == len(recorder.spans) and min(e["ts"] for e in events) == 0
    assert {(e["pid"], e["tid"]) for e in events} == {(1, 1)}
    assert [e["ts"] for e in events] == sorted(e["ts"] for e in events)

    def within(a: dict[str, Any], b: dict[str, Any]) -> bool:
        return b["ts"] <= a["ts"] and a["ts"] + a["dur"] <= b["ts"] + b["dur"]

    for i, a in enumerate(events):
        for b in events[i + 1 :]:
            assert within(b, a) or b["ts"] >= a["ts"] + a["dur"]
    for kind, outer in (("kernel", "entry"), ("entry", "case")):
        for event in (e for e in events if e["cat"] == kind):
            assert sum(within(event, e) for e in events if e["cat"] == outer) == 1
    moe = next(e for e in events if e["name"] == "moe")
    assert moe["args"] == {"kernel": "moe_kernel", "op": "moe", "layer": 1, "where": "definition.py:3"}
    names = {e["name"]: e["args"]["name"] for e in told["traceEvents"] if e["ph"] == "M"}
    assert names == {"process_name": "demo", "thread_name": "calls"}


def test_accounts_sum_up() -> None:
    recorder = recorded()
    kernels = [s for s in recorder.spans if s.kind == "kernel"]
    first, second = accounts(recorder.spans, build(CALLS))
    assert (first.name, second.name) == ("first", "second")
    for account, mine in ((first, kernels[:11]), (second, kernels[11:])):
        whole = sum(s.microseconds for s in mine) / 1000
        for rows in (account.ops, account.layers):
            assert sum(row.calls for row in rows) == len(mine)
            assert sum(row.milliseconds for row in rows) == pytest.approx(whole, rel=1e-12)
            assert sum(row.share for row in rows) == pytest.approx(1, rel=1e-12)
        assert account.between == pytest.approx(account.milliseconds - whole, rel=1e-9) and account.between > 0
        assert all(a.milliseconds >= b.milliseconds for a, b in pairwise(account.ops))
        assert [row.name for row in account.layers] == ["dense: 0, 3", "MoE: 1-2", "outside of layers"]
    proj = next(row for row in first.ops if row.name == "proj")
    assert proj.calls == 4 and proj.microseconds_per_call == 1000 * proj.milliseconds / 4
    told = json.loads(json.dumps(second.to_json()))
    assert told["case"] == "second" and told["ops"][0] == vars(second.ops[0])
    assert told["milliseconds"] == pytest.approx(
        told["between_milliseconds"] + sum(row["milliseconds"] for row in told["layers"])
    )


def test_the_table() -> None:
    calls = {"one": (call("proj", 0), call("a_longer_op", None))}
    recorder = Recorder(calls, "demo")
    with recorder.case("a case"):
        run(recorder, "one", ["proj_kernel", "a_longer_op_kernel"])
    (account,) = accounts(recorder.spans, build(calls))
    # looks at 1 (case), 3 (entry), 6 and 10 (4 us), 15 and 21 (6 us), 28, 36
    assert kernel_table(account) == (
        "  a case, 0.035 ms     calls    ms   share  us/call\n"
        "    a_longer_op            1  0.01  60.0 %        6\n"
        "    proj                   1  0.00  40.0 %        4\n"
        "\n"
        "    dense: 0               1  0.00  40.0 %        4\n"
        "    outside of layers      1  0.01  60.0 %        6\n"
        "    between kernels           0.03"
    )


@pytest.mark.parametrize(
    ("kernels", "what"),
    [
        (["embed_kernel", "mlp_kernel"], "the code calls mlp_kernel where the manifest has another kernel"),
        ([*KERNELS, "embed_kernel"], "the code calls embed_kernel where the manifest has another kernel"),
        (KERNELS[:-1], "the code does not call head_kernel, which the manifest lists"),
    ],
)
def test_code_that_is_not_what_the_manifest_says(kernels: list[str], what: str) -> None:
    with pytest.raises(DeepZigError) as error:
        run(Recorder(CALLS, "demo"), "decode", kernels)
    assert str(error.value) == f"{what}\n  at: demo, decode\n  fix: compile the model again"
