"""The table of ops and the GPU kernels that compute them."""

from __future__ import annotations

from deepzig.targets.base import Table

LOWERINGS: Table = {}
