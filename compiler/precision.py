"""Which matrices are quantised: from the text of `--quant` to a rule on names."""

from __future__ import annotations

from collections.abc import Callable, Collection

from deepzig.errors import DeepZigError
from deepzig.ir.fp8 import FP8, SIDE
from deepzig.ir.quantize import FORMATS, QUANTIZED
from deepzig.models.config import ModelConfig

FLOAT = "float"
"""What a rule says of matrices that stay as `--dtype` has them."""

KEPT = ("embed_tokens", "eh_proj")
"""Matrices that stay floats: rows of the embedding are looked up, the other is cut into columns before it is used."""

HEADWISE = "kv_b_proj"
"""The matrix that attention multiplies by head by head. Beside integers of 4 bits it has 8, unless a rule says
otherwise: with 4 the reference model gives 0.4 % fewer right answers."""

HEADS = ("lm_head", "shared_head.head")
"""The output head, where few bits cost the most; 8-bit integers, the most exact, unless a rule says otherwise."""

Rule = Callable[[str], str | None]


def quantize_nothing(name: str) -> None:
    """The rule that quantises nothing."""


def parse_quant(text: str | None, headwise: Collection[str] = ()) -> Rule:
    """The rule that `--quant` gives: name of a matrix -> one of FORMATS; None if it isn't quantised.

    Args:
        text: `q8`, `q4` or `fp8` for all matrices but KEPT, then `part.of.name=q8` (or another, or float) for some of
            them, separated by commas; the last that matches counts. None quantises nothing.
        headwise: those of FORMATS that HEADWISE may have, see `headwise_formats`; else it is not quantised.

    Raises:
        DeepZigError: not such a text.
    """
    if text is None:
        return quantize_nothing
    first, *more = text.split(",")
    rules = [("", first), *((head, "q8") for head in HEADS)]
    if first in QUANTIZED:
        rules.append((HEADWISE, "q8"))
    for part in more:
        name, equals, kind = part.strip().partition("=")
        if not equals or not name:
            raise _error(f"{part!r} is not a rule")
        rules.append((_paired(name), kind))
    for _, kind in rules:
        if kind not in (*FORMATS, FLOAT):
            raise _error(f"no quantisation is called {kind!r}")

    def rule(name: str) -> str | None:
        if any(f".{part}." in f".{name}." for part in KEPT):
            return None
        kind = [kind for part, kind in rules if f".{part}." in f".{_paired(name)}." or not part][-1]
        if f".{HEADWISE}." in f".{name}." and kind not in headwise:
            return None
        return None if kind == FLOAT else kind

    return rule


def headwise_formats(config: ModelConfig, formats: Collection[str]) -> Collection[str]:
    """Those of `formats` that HEADWISE can have: 8-bit floats only if its heads are whole blocks, both ways."""
    sizes = (config.qk_nope_head_dim, config.v_head_dim, config.kv_lora_rank)
    return [name for name in formats if name != FP8 or not any(size % SIDE for size in sizes)]


def _paired(name: str) -> str:
    """gate_proj and up_proj are multiplied in one product: what is said of one holds for both."""
    return name.replace("up_proj", "gate_proj")


def _error(what: str) -> DeepZigError:
    hint = f"give one of {', '.join(FORMATS)}, then rules such as experts.down_proj=q8 or o_proj={FLOAT}"
    return DeepZigError(what, "--quant", hint)
