"""Turns of processes: one runs, the others are stopped; who is slow is spared, who fails drops out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import contest
import psutil
import pytest
from contest import Contender, ContenderError, closing, take_turns
from protocol import Case

WORKER = """
import sys, threading, time
sys.path.insert(0, sys.argv[1])
from protocol import serve

def start():
    {start}
    def run(case):
        {run}
        return {seconds}
    return run

serve(start)
"""
SPIN = "threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()"
BENCH = Path(contest.__file__).parent
PROMPTS = Case(prompt=3), Case(prompt=400)
DECODES = Case(batch=2, depth=5, steps=7), Case(batch=1, depth=900, steps=7)

Make = Callable[..., Contender]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Contender] = []

    def worker(name: str, start: str = "pass", run: str = "pass", seconds: str = "1.5") -> Contender:
        script = tmp_path / f"{name}.py"
        script.write_text(WORKER.format(start=start, run=run, seconds=seconds))
        made.append(Contender(name, [sys.executable, str(script), str(BENCH)], tmp_path / f"{name}.log"))
        return made[-1]

    with closing(made):
        yield worker


def turns(contenders: list[Contender], cases: tuple[Case, ...], rounds: int, limit: float = 1e4) -> Any:
    said: list[str] = []
    speeds = iter(range(1000))
    samples = take_turns(contenders, cases, rounds, limit, lambda: float(next(speeds)), lambda: 7.0, said.append)
    return samples, said


def test_every_turn_but_the_first_counts(make: Make) -> None:
    a = make("a", seconds="float(case.prompt or case.depth)")
    b = make("b", start="count = iter(range(99))", seconds="float(next(count))")
    samples, said = turns([a, b], (*DECODES, *PROMPTS), 2)
    assert not said
    assert {key: seconds for key, seconds in samples.seconds.items() if key[0] == "a"} == {
        ("a", case): [float(case.prompt or case.depth)] * 2 for case in (*DECODES, *PROMPTS)
    }
    order = PROMPTS[0], DECODES[0], PROMPTS[1], DECODES[1]  # by the tokens that have to be read
    assert [samples.seconds["b", case] for case in order] == [[4.0 + i, 8.0 + i] for i in range(4)]
    assert [samples.limits[case] for case in order] == [[4.0 + i, 8.0 + i] for i in range(4)]
    assert samples.product == [7.0, 7.0]


def test_who_is_not_asked_is_stopped(make: Make) -> None:
    spinning = make("spinning", start=SPIN)
    process = psutil.Process(spinning._process.pid)
    time.sleep(0.1)  # signals take their time
    busy = process.cpu_times().user
    time.sleep(0.2)
    assert process.status() == psutil.STATUS_STOPPED and process.cpu_times().user == busy
    assert spinning.run(DECODES[0], 30) == 1.5
    time.sleep(0.05)
    assert process.status() == psutil.STATUS_STOPPED
    spinning.close()
    assert not process.is_running()


def test_who_reads_slowly_is_spared_long_texts(make: Make) -> None:
    slow, fast = make("slow", seconds="case.prompt * 0.5"), make("fast", seconds="case.prompt * 0.1")
    samples, said = turns([slow, fast], (*PROMPTS, DECODES[1]), 1, limit=150.0)
    assert said == [
        "slow: prefill of 400 would take longer than 150 s, left out",
        "slow: decode, batch 1, depth 900 would take longer than 150 s, left out",
    ]
    assert set(samples.seconds) == {("slow", PROMPTS[0]), *(("fast", case) for case in (*PROMPTS, DECODES[1]))}


def test_who_fails_drops_out(make: Make, tmp_path: Path) -> None:
    bad, good = make("bad", run='if case.batch == 2: raise ValueError("no\\nmore")'), make("good")
    samples, said = turns([bad, good], (PROMPTS[0], *DECODES), 2)
    assert said == [f"bad, decode, batch 2, depth 5: ValueError: no, see {tmp_path / 'bad.log'}"]
    assert "raise ValueError" in (tmp_path / "bad.log").read_text()
    assert {name for name, _ in samples.seconds} == {"good"}


def test_processes_that_die_or_hang(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ContenderError) as missing:
        Contender("x", ["/no/such/python"], tmp_path / "x.log")
    assert str(missing.value) == "/no/such/python: No such file or directory"
    with pytest.raises(ContenderError) as died:
        make("dead", start="import os; os._exit(3)")
    assert str(died.value) == f"the process ended with 3, see {tmp_path / 'dead.log'}"
    with pytest.raises(ContenderError) as absent:
        make("absent", start="import no_such_module")
    log = tmp_path / "absent.log"
    assert str(absent.value) == f"ModuleNotFoundError: No module named 'no_such_module', see {log}"
    hung = make("hung", run="time.sleep(100)")
    with pytest.raises(ContenderError) as late:
        hung.run(PROMPTS[0], 0.1)
    assert str(late.value) == f"no answer after 0 s, see {tmp_path / 'hung.log'}"
    assert hung._process.returncode is not None


def test_libraries_do_not_find_modules_of_the_benchmark(make: Make) -> None:
    finds = make("finds", seconds="float(__import__('importlib.util').util.find_spec('report') is not None)")
    assert finds.run(PROMPTS[0], 30) == 0.0


def test_what_libraries_print_is_no_answer(make: Make, tmp_path: Path) -> None:
    chatty = make("chatty", start='print("hello")', run='print("{}")')
    assert chatty.run(PROMPTS[0], 30) == 1.5
    assert (tmp_path / "chatty.log").read_text() == "hello\n{}\n"
