"""What a product of rows with a weight is, whichever kernel computes it: its sizes, its operands and its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from deepzig.targets.emit import Buffer, Expr, Kernel, store

from .layout import pitch, stored


@dataclass(frozen=True)
class Product:
    """y = norm(x[:, begin:begin+k]) w^T + bias + residual; all but the product are optional.

    Attributes:
        k: inputs.
        n: outputs; of a shard of the weight, those of the shard.
        wdtype: `f32`, `bf16`, `f16`, `q8`, `q4` or `fp8`.
        x_width: columns of x; None: k.
        begin: first column of x that is multiplied.
        norm_eps: epsilon of the RMSNorm; None: x isn't normed.
        bias: whether a bias is added.
        residual: whether a matrix of y's shape is added.
        gated: whether each output has two rows of the weight, side by side, and is silu(x gate^T) * (x up^T).
        y_width: columns of y; None: n.
        y_begin: the first of them that is written.
    """

    k: int
    n: int
    wdtype: str
    x_width: int | None = None
    begin: int = 0
    norm_eps: float | None = None
    bias: bool = False
    residual: bool = False
    gated: bool = False
    y_width: int | None = None
    y_begin: int = 0

    @property
    def halves(self) -> int:
        """Rows of the weight of an output."""
        return 2 if self.gated else 1

    @property
    def names(self) -> list[str]:
        """The parts of a kernel's name that tell it from others."""
        extras = (
            (f"from{self.begin}of{self.x_width}", self.x_width not in (None, self.k)),
            (f"norm{self.norm_eps}", self.norm_eps is not None),
            ("bias", self.bias),
            ("res", self.residual),
            ("gated", self.gated),
            (f"to{self.y_begin}of{self.y_width}", self.y_width not in (None, self.n)),
        )
        return [f"k{self.k}", f"n{self.n}", self.wdtype, *(name for name, on in extras if on)]

    def operands(self, f: Kernel, rows: Expr) -> Operands:
        """The parameters of a kernel.

        Returns:
            (X[rows, x_width], W[n * halves, pitch] packed by `layout.pack_rows`, norm[k]?, bias[y_width]?,
            residual[rows, y_width]?, Y[rows, y_width]), all f32 but W. Y is written. Row halves * j + i of W is half i
            of output j.
        """
        y_width = self.y_width or self.n
        return Operands(
            self,
            x=f.tensor("x", "f32", rows, self.x_width or self.k),
            w=f.tensor("w", stored(self.wdtype), self.n * self.halves, pitch(self.k, self.wdtype)),
            norm=f.tensor("norm", "f32", self.k) if self.norm_eps is not None else None,
            bias=f.tensor("bias", "f32", y_width) if self.bias else None,
            residual=f.tensor("residual", "f32", rows, y_width) if self.residual else None,
            y=f.tensor("y", "f32", rows, y_width),
        )


@dataclass(frozen=True)
class Operands:
    """The parameters of a kernel that computes a product, in their order; see `Product.operands`."""

    product: Product
    x: Buffer
    w: Buffer
    norm: Any
    bias: Any
    residual: Any
    y: Buffer

    def write(self, row: Expr, column: Expr, *sums: Expr) -> None:
        """Emit the end of a product: its sums, of gate and up if it is gated, become an element of y.

        Args:
            row: of y.
            column: of the weight's n outputs.
            sums: one for each half.
        """
        column = column + self.product.y_begin
        value = gated(*sums) if self.product.gated else sums[0]
        value = value + self.bias[column] if self.product.bias else value
        value = value + self.residual[row, column] if self.product.residual else value
        store(self.y, value, row, column)


def gated(gate: Expr, up: Expr) -> Expr:
    """silu(gate) * up."""
    return gate / (T.float32(1) + T.exp(-gate)) * up
