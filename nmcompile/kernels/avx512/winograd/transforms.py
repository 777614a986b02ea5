"""Winograd's minimal filtering: its matrices, and their products written out.

An output tile of m x m pixels is A' [(G g G') * (B' d B)] A, with a window g of r x r, the input
pixels d under the tile, m + r - 1 on each side, and * by element (Lavin and Gray, "Fast Algorithms
for Convolutional Neural Networks", CVPR 2016, section 4). For r = 3 and m = 4 that takes 36
multiplications instead of 144.

All of it follows from the points 0, 1, -1, infinity, or with 2 and -2 between, at which the
polynomials of g and d are multiplied (Toom and Cook). B depends on the points alone, so one form
serves all m and r of the same sum. More points lose too many digits in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import Expr, splat

# (kernel, stride): output pixels per side of a tile. A stride of 2 becomes 1 when the four phases
# of the image (row and column modulo 2) are channels of their own; the window is then half as wide.
SIDES = {(3, 1): (2, 4), (5, 1): (2,), (5, 2): (4,), (7, 2): (3,)}
POINTS = {4: (0.0, 1.0, -1.0), 6: (0.0, 1.0, -1.0, 2.0, -2.0)}
SCALES = {4: (1.0, 1 / 2, 1 / 2), 6: (1 / 4, -1 / 6, -1 / 6, 1 / 24, 1 / 24)}


def window_matrix(span: int, window: int) -> npt.NDArray[np.float64]:
    """G, of shape (span, window): values at the points, and the last coefficient at infinity."""
    powers = np.arange(window)
    rows = [scale * point**powers for point, scale in zip(POINTS[span], SCALES[span], strict=True)]
    return np.array([*rows, powers == window - 1], np.float64)


def transform_input(d: Sequence[Sequence[Expr]]) -> list[list[Expr]]:
    """B' d B: both sides m + r - 1 long, and B by that length."""
    return _both_sides(d, _input_4 if len(d) == 4 else _input_6)


def transform_output(s: Sequence[Sequence[Expr]], side: int) -> list[list[Expr]]:
    """A' s A: both sides m + r - 1 long, m = `side` by the length."""

    def product(x: Sequence[Expr]) -> list[Expr]:
        # The points come in pairs p, -p: even powers take their sum, odd ones their difference.
        pairs = [
            (POINTS[len(x)][i], T.bind(x[i] + x[i + 1]), T.bind(x[i] - x[i + 1]))
            for i in range(1, len(x) - 1, 2)
        ]
        rows = []
        for power in range(side):
            terms = [x[0]] if power == 0 else []
            for point, total, difference in pairs:
                term = difference if power % 2 else total
                terms.append(term if point == 1 else splat(point**power) * term)
            if power == side - 1:
                terms.append(x[-1])
            rows.append(_sum(terms))
        return rows

    return _both_sides(s, product)


def transform_window(g: Sequence[Sequence[Expr | None]], span: int) -> list[list[Expr]]:
    """G g G': r in, `span` out. None stands for a zero."""
    matrix = window_matrix(span, len(g))

    def product(x: Sequence[Expr | None]) -> list[Expr | None]:
        if all(value is None for value in x):
            return [None] * span
        rows = []
        for row in matrix:
            terms = [
                splat(float(factor)) * value
                for factor, value in zip(row, x, strict=True)
                if factor and value is not None
            ]
            rows.append(_sum(terms) if terms else None)
        return rows

    return [
        [splat(0.0) if value is None else value for value in row] for row in _both_sides(g, product)
    ]


def _sum(terms: Sequence[Expr]) -> Expr:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return T.bind(total)


def _both_sides(
    rows: Sequence[Sequence[Expr]], product: Callable[[Sequence[Expr]], list[Expr]]
) -> list[list[Expr]]:
    """The product with every column, then with every row of what that gave."""
    columns = [product(column) for column in zip(*rows, strict=True)]
    return [product(row) for row in zip(*columns, strict=True)]


def _input_4(d: Sequence[Expr]) -> list[Expr]:
    return [T.bind(d[0] - d[2]), T.bind(d[1] + d[2]), T.bind(d[2] - d[1]), T.bind(d[3] - d[1])]


def _input_6(d: Sequence[Expr]) -> list[Expr]:
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
