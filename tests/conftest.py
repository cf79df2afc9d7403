"""Settings of every test."""

from __future__ import annotations

import os
import signal

from deepzig.artifacts.cpu_features import MASK, detect
from deepzig.artifacts.machines import MACHINES

ROUNDING = ("amx-", "avx512bf16")
"""How the names of instruction sets begin whose products of bf16 round rows: no test of a model could tell that from a
kernel that is slightly wrong. Tests of these instructions use them all the same."""

if any(feature.startswith(ROUNDING) for feature in detect()):
    # those of other machines stay, for processes under qemu
    known = detect().union(*(kind.features for kind in MACHINES.values()))
    os.environ.setdefault(MASK, ",".join(sorted(f for f in known if not f.startswith(ROUNDING))))

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the processors, and threads of PyTorch that wait for each other spin: one second becomes ten.
    # TVM has a variable of its own, so that tests of two threads have two.
    os.environ.setdefault("TVM_NUM_THREADS", str(os.cpu_count() or 1))
    os.environ.setdefault("OMP_NUM_THREADS", "1")

os.environ.setdefault("TVM_BIND_THREADS", "0")  # as the runtime does

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # shells start what runs in the background so, and its children inherit it: Ctrl-C would never be heard
    signal.signal(signal.SIGINT, signal.default_int_handler)
