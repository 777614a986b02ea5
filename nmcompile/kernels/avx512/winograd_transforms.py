"""Winograd's minimal filtering for 3x3 windows: the matrices, and their products written out.

An output tile of m x m pixels is A' [(G g G') * (B' d B)] A, with the window g, the input pixels d
under the tile, m + 2 on each side, and * by element (Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks", CVPR 2016, section 4). For m = 2 that takes 16 multiplications
instead of 36, for m = 4 36 instead of 144. Larger tiles lose too many digits in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import Expr, splat

WINDOW = 3
TILES = (2, 4)  # output pixels per side


def window_matrix(m: int) -> npt.NDArray[np.float64]:
    """G, of shape (m + 2, 3)."""
    if m == 2:
        rows = [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]
    else:
        rows = [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ]
    return np.array(rows)


def transform_input(d: Sequence[Sequence[Expr]]) -> list[list[Expr]]:
    """B' d B: both sides m + 2 long, m by the length."""
    return _both_sides(d, _input_2 if len(d) == 4 else _input_4)


def transform_output(s: Sequence[Sequence[Expr]]) -> list[list[Expr]]:
    """A' s A: m + 2 in, m out."""
    return _both_sides(s, _output_2 if len(s) == 4 else _output_4)


def transform_window(g: Sequence[Sequence[Expr]], m: int) -> list[list[Expr]]:
    """G g G': 3 in, m + 2 out."""
    matrix = window_matrix(m)

    def product(x: Sequence[Expr]) -> list[Expr]:
        rows = []
        for row in matrix:
            terms = [splat(float(f)) * v for f, v in zip(row, x, strict=True) if f]
            total = terms[0]
            for term in terms[1:]:
                total = total + term
            rows.append(T.bind(total))
        return rows

    return _both_sides(g, product)


def _both_sides(
    rows: Sequence[Sequence[Expr]], product: Callable[[Sequence[Expr]], list[Expr]]
) -> list[list[Expr]]:
    """The product with every column, then with every row of what that gave."""
    columns = [product(column) for column in zip(*rows, strict=True)]
    return [product(row) for row in zip(*columns, strict=True)]


def _input_2(d: Sequence[Expr]) -> list[Expr]:
    return [T.bind(d[0] - d[2]), T.bind(d[1] + d[2]), T.bind(d[2] - d[1]), T.bind(d[1] - d[3])]


def _input_4(d: Sequence[Expr]) -> list[Expr]:
    two, four, five = splat(2.0), splat(4.0), splat(5.0)
    even, odd = T.bind(d[4] - four * d[2]), T.bind(d[3] - four * d[1])
    near, far = T.bind(d[4] - d[2]), T.bind(d[3] - d[1])
    return [
        T.bind(four * d[0] + (d[4] - five * d[2])),
        T.bind(even + odd),
        T.bind(even - odd),
        T.bind(near + two * far),
        T.bind(near - two * far),
        T.bind(four * d[1] + (d[5] - five * d[3])),
    ]


def _output_2(s: Sequence[Expr]) -> list[Expr]:
    return [T.bind(s[0] + s[1] + s[2]), T.bind(s[1] - s[2] - s[3])]


def _output_4(s: Sequence[Expr]) -> list[Expr]:
    two, four, eight = splat(2.0), splat(4.0), splat(8.0)
    sum1, difference1 = T.bind(s[1] + s[2]), T.bind(s[1] - s[2])
    sum2, difference2 = T.bind(s[3] + s[4]), T.bind(s[3] - s[4])
    return [
        T.bind(s[0] + sum1 + sum2),
        T.bind(difference1 + two * difference2),
        T.bind(sum1 + four * sum2),
        T.bind(difference1 + eight * difference2 + s[5]),
    ]
