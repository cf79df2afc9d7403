"""The table of ops and the GPU kernels that compute them."""

from __future__ import annotations

from deepzig.targets.base import Table

from .lower_attention import ATTENTION
from .lower_moe import EXPERTS
from .lower_products import PRODUCTS
from .lower_rows import ROWS
from .plain import PLAIN

LOWERINGS: Table = {**PLAIN, **ROWS, **PRODUCTS, **EXPERTS, **ATTENTION}
