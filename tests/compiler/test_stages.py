"""Stages in the log, from a clock that is told."""

from __future__ import annotations

import pytest

from deepzig.compiler import stages


def test_every_stage_is_told_and_logged_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 11.5, 14.25])
    monkeypatch.setattr(stages.time, "perf_counter", lambda: next(times))
    told: list[tuple[str, int, int]] = []
    progress = stages.logged(lambda *call: told.append(call))
    calls = [("fuse", 0, 1), ("fuse", 1, 1), ("weights", 3, 7), ("weights", 7, 7)]
    with caplog.at_level("INFO", "deepzig"):
        for call in calls:
            progress(*call)
    assert told == calls
    assert [record.getMessage() for record in caplog.records] == ["fuse: 1.50 s", "weights: 2.75 s"]
