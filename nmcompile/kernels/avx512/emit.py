"""Small vocabulary for writing AVX-512 TIR: vectors of 16 floats, masks, activations.

Every function either returns a TIR expression or emits statements into the open builder frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from nmcompile.kernels.spec import GELU_TANH, Activation

LANES = 16  # float32 lanes of one 512-bit register
Expr = Any  # TVM ships no type stubs
Buffer = Any


def lanes(start: Expr, width: int = LANES) -> Expr:
    """Indices start, start + 1, ... of one vector."""
    return T.ramp(start, 1, width)


def splat(value: Expr, width: int = LANES) -> Expr:
    """One scalar in every lane; a Python float becomes a float32."""
    return T.broadcast(T.float32(value) if isinstance(value, float) else value, width)


def first_lanes(active: Expr) -> Expr:
    """A mask with the first `active` lanes set."""
    return lanes(0) < splat(T.int32(active) if isinstance(active, int) else active)


def masked_load(
    buffer: Buffer, index: Expr, mask: Expr, width: int = LANES, fill: float = 0.0
) -> Expr:
    """The elements at a vector of `width` indices; lanes outside the mask are `fill`, never read.

    TVM leaves masked lanes undefined; LLVM turns the selection into the load's own zeroing. Written
    inside of the selection, the load would lose its mask: TVM takes the condition for true there.
    """
    dtype = str(buffer.dtype)
    value = T.bind(tirx.op.masked_load(f"{dtype}x{width}", buffer, index, mask))
    if dtype == "float32":
        return T.Select(mask, value, splat(fill, width))
    return T.Select(mask, value, T.broadcast(T.Cast(dtype, T.int32(int(fill))), width))


def load(buffer: Buffer, start: Expr, active: Expr = LANES) -> Expr:
    """16 consecutive floats from a flat buffer; lanes from `active` on are zero, never read."""
    if isinstance(active, int):
        return load_between(buffer, start, 0, active, LANES, 0.0)
    return masked_load(buffer, lanes(start), first_lanes(active))


def load_between(buffer: Buffer, start: Expr, low: int, high: int, width: int, fill: float) -> Expr:
    """`width` consecutive floats; lanes outside [low, high) are `fill`, never read."""
    low, high = max(low, 0), min(high, width)
    if (low, high) == (0, width):
        return buffer[T.ramp(start, 1, width)]
    if low >= high:
        return splat(fill, width)
    lane = T.ramp(0, 1, width)
    mask = lane < splat(T.int32(high), width)
    if low:
        mask = tirx.all(mask, lane >= splat(T.int32(low), width))
    return masked_load(buffer, T.ramp(start, 1, width), mask, width, fill)


def store(buffer: Buffer, start: Expr, value: Expr, active: Expr = LANES) -> None:
    """Store the first `active` lanes of a vector to a flat buffer."""
    if not isinstance(active, int) or active < LANES:
        T.evaluate(tirx.op.masked_store(buffer, value, lanes(start), first_lanes(active)))
    else:
        T.buffer_store(buffer, value, [lanes(start)])


def widen(value: Expr, width: int) -> Expr:
    """A vector of 16 lanes that begins with one of `width`."""
    if width == LANES:
        return value
    return T.Shuffle([value] * (LANES // width), list(range(LANES)))


def narrow(value: Expr, width: int) -> Expr:
    """The first `width` lanes of a vector of 16."""
    return value if width == LANES else T.Shuffle([value], list(range(width)))


def either(condition: Expr, differs: bool, one: Callable[[bool], None]) -> None:
    """What `one` emits for the last of something, and for the others if it differs."""
    if not differs:
        one(True)
        return
    with T.If(condition):
        with T.Then():
            one(True)
        with T.Else():
            one(False)


def transpose(rows: Sequence[Expr]) -> list[Expr]:
    """The columns of 16 vectors of 16 floats, as vectors: 64 shuffles.

    Two rounds within quarters of 128 bits leave in `quarters[g][k]` columns 4 L + k of the rows
    from 4 g on, one L in each quarter; two of whole quarters bring those of all rows together.
    """

    def within(a: Expr, b: Expr, picks: Sequence[int]) -> Expr:
        """Of each quarter four floats, 0 to 3 of `a` and 4 to 7 of `b`."""
        places = [pick % 4 + pick // 4 * LANES for pick in picks]
        return T.bind(
            T.Shuffle([a, b], [at + place for at in range(0, LANES, 4) for place in places])
        )

    def whole(a: Expr, b: Expr, first: int) -> Expr:
        """Quarters `first` and `first` + 2 of `a`, then those of `b`."""
        starts = [operand * LANES + 4 * (first + q) for operand in (0, 1) for q in (0, 2)]
        return T.bind(T.Shuffle([a, b], [start + lane for start in starts for lane in range(4)]))

    quarters = []
    for first in range(0, LANES, 4):
        a, b, c, d = rows[first : first + 4]
        low, high = (0, 4, 1, 5), (2, 6, 3, 7)
        pairs = [(within(a, b, side), within(c, d, side)) for side in (low, high)]
        quarters.append(
            [within(*pair, half) for pair in pairs for half in ((0, 1, 4, 5), (2, 3, 6, 7))]
        )
    columns = dict[int, Expr]()
    for k, (a, b, c, d) in enumerate(zip(*quarters, strict=True)):
        for first in (0, 1):
            left, right = whole(a, b, first), whole(c, d, first)
            columns[4 * first + k] = whole(left, right, 0)
            columns[4 * (first + 2) + k] = whole(left, right, 1)
    return [columns[index] for index in range(LANES)]


def prefetch(buffer: Buffer, start: Expr, floats: int, *, write: bool = False) -> None:
    """Ask for the cache lines of `floats` elements of four bytes; harmless past the end."""
    for first in range(0, floats, LANES):
        address = tirx.op.address_of(buffer[start + first])
        hint = (T.int32(int(write)), T.int32(3), T.int32(1))
        T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, *hint))


def largest(vectors: Sequence[Expr]) -> Expr:
    """The maximum of vectors of 16 or 8 floats, NaN in the lanes where one of them is NaN.

    vmaxps gives its second operand where either is NaN. So the last vector's NaN comes through by
    itself, and one comparison looks for NaN in two others.
    """
    *others, best = vectors
    if not others:
        return best
    width = int(best.ty.dtype.lanes)
    others = [held(other, width) for other in others]
    for other in others:
        best = T.bind(extreme("max", other, best, width))
    lost = tirx.any(*(T.isnan(other) for other in others))
    return T.Select(lost, splat(math.nan, width), best)


def extreme(kind: str, a: Expr, b: Expr, width: int = LANES) -> Expr:
    """The instruction vmaxps or vminps: b where either is NaN.

    T.max and T.min keep NaN of both (`nmcompile.kernels.nan`), which takes more than one
    instruction where both are computed, and LLVM may take a comparison and a masked operation
    instead.
    """
    if width == LANES:
        current_rounding = T.int32(4)
        name = f"llvm.x86.avx512.{kind}.ps.512"
        return T.call_llvm_intrin("float32x16", name, a, b, current_rounding)
    return T.call_llvm_intrin(f"float32x{width}", f"llvm.x86.avx.{kind}.ps.256", a, b)


def exp(x: Expr) -> Expr:
    """e^x of a float32 vector, about 1e-7 relative; infinite from 88.4 on.

    x = k ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 6, 2^k by writing
    k into the exponent bits. LLVM would call the scalar libm function for every lane.
    """
    x = T.bind(T.max(T.min(x, splat(89.0)), splat(-87.0)))
    k = T.bind(tirx.op.floor(x * splat(1.0 / math.log(2.0)) + splat(0.5)))
    # ln 2 in two parts, so that k * high is exact.
    r = T.bind(x - k * splat(0.693359375) + k * splat(2.12194440e-4))
    p: Expr = splat(1.0 / 720.0)
    for factor in (120.0, 24.0, 6.0, 2.0, 1.0, 1.0):
        p = T.bind(p * r + splat(1.0 / factor))
    bits = (T.Cast("int32x16", k) + splat(T.int32(127))) << splat(T.int32(23))
    return p * T.reinterpret("float32x16", bits)


def exp_below(x: Expr) -> Expr:
    """e^x of a float32 vector of numbers up to 0, about 2e-7 relative; NaN stays NaN.

    Where the result would be subnormal it is 0, and so is that of -inf. x = (k + r) ln 2 with
    |r| <= 1/2, and 2^r by a polynomial. A number is rounded to a whole one by adding 1.5 * 2^23,
    after which its lowest bits are those of k.
    """
    shift = 1.5 * 2**23
    scaled = splat(1.0 / math.log(2.0))
    rounded = held(x * scaled + splat(shift))
    r = held(x * scaled + (splat(shift) + rounded * splat(-1.0)))
    p: Expr = splat(_EXP2[0])
    for coefficient in _EXP2[1:]:
        p = T.bind(p * r + splat(coefficient))
    k = T.reinterpret("int32x16", rounded) << splat(T.int32(23))
    power = T.reinterpret("float32x16", T.reinterpret("int32x16", p) + k)
    return T.Select(x < splat(-87.0), splat(0.0), power)


_EXP2 = (
    1.5345799e-4, 1.3399931e-3, 9.6184891e-3, 5.5503286e-2, 2.4022646e-1, 6.9314718e-1, 1.0,
)  # fmt: skip
"""2^r for |r| <= 1/2, the highest power first: within 2e-9 where it is computed exactly."""


def held(value: Expr, width: int = LANES) -> Expr:
    """A float32 vector by way of memory, which LLVM makes a register of.

    TVM puts what a variable is bound to in its place wherever it simplifies: a value that is used
    twice, and whose use is used twice, would grow without bound.
    """
    memory = T.alloc_buffer((width,), scope="local")
    T.buffer_store(memory, value, [lanes(0, width)])
    return T.bind(memory[lanes(0, width)])


def over_lanes(value: Expr, join: Callable[[Expr, Expr], Expr]) -> Expr:
    """What joining all lanes of a vector gives, in every lane."""
    for step in (8, 4, 2, 1):
        order = [lane ^ step for lane in range(LANES)]
        value = held(join(value, T.Shuffle([value], order)))
    return value


_NORMAL_STEP = 0.38
_NORMAL = (
    (
        0.0, 0.14802729, 0.2763727, 0.37285686, 0.43574452, 0.47128344, 0.48869616, 0.49609298,
        0.49881712, 0.4996869, 0.49992764, 0.49998543, 0.49999744, 0.49999961, 0.49999994, 0.5,
    ),
    (
        0.39894116, 0.37115118, 0.29887253, 0.20830996, 0.12566698, 0.06561707, 0.029654708,
        0.011599721, 0.0039271158, 0.0011507112, 2.9182259e-4, 6.4050706e-5, 1.2166707e-5,
        2.0001237e-6, 2.8455412e-7, 0.0,
    ),
    (
        5.1643354e-5, -0.070517302, -0.11356932, -0.11873455, -0.095505655, -0.062336043,
        -0.033806913, -0.015428361, -0.0059697861, -0.0019680427, -5.5460975e-4, -1.3391943e-4,
        -2.7756103e-5, -4.9442951e-6, -7.5774705e-7, 0.0,
    ),
    (
        -0.067267358, -0.052626956, -0.021054827, 0.010159428, 0.027185002, 0.028403996,
        0.020736827, 0.011792215, 0.0054434417, 0.0020820552, 6.6772144e-4, 1.8090429e-4,
        4.1616899e-5, 8.1590315e-6, 1.3668659e-6, 0.0,
    ),
    (
        0.0047040293, 0.016637933, 0.022763684, 0.016758882, 0.0055276901, -0.0030933844,
        -0.0061427038, -0.0052266126, -0.0031122165, -0.0014366227, -5.3541677e-4, -1.6450226e-4,
        -4.2183383e-5, -9.1007669e-6, -1.6610683e-6, 0.0,
    ),
)  # fmt: skip
"""The normal distribution from 0 to t around 16 multiples of a step: coefficients of 1, r, ... r^4.

Interpolated in Chebyshev's nodes, within 1.6e-7; the first is 0 where t is, the last is 1/2."""


def gelu(x: Expr) -> Expr:
    """GELU of a float32 vector, within 1.6e-7 of max(1, |x|); NaN of -inf, as x * 0 is.

    x / 2 + x * D, where D is the normal distribution from 0 to x: a polynomial around the nearest
    of 16 places, whose coefficients a permutation picks by the lowest bits of a rounded number.
    """
    shift = 1.5 * 2**23
    size = T.bind(extreme("min", splat((LANES - 0.6) * _NORMAL_STEP), T.abs(x)))
    rounded = held(size * splat(1.0 / _NORMAL_STEP) + splat(shift))
    r = held(size + (splat(shift) + rounded * splat(-1.0)) * splat(_NORMAL_STEP))
    place = T.bind(T.reinterpret("int32x16", rounded))

    def picked(numbers: Sequence[float]) -> Expr:
        table = T.Shuffle([T.float32(number) for number in numbers], list(range(LANES)))
        name = "llvm.x86.avx512.permvar.sf.512"
        return T.bind(T.call_llvm_pure_intrin("float32x16", name, table, place))

    *lower, highest = _NORMAL
    part = picked(highest)
    for numbers in reversed(lower):
        part = T.bind(part * r + picked(numbers))
    sign = splat(T.int32(-(1 << 31)))
    signed = T.reinterpret("int32x16", part) | (T.reinterpret("int32x16", x) & sign)
    half = T.bind(x * splat(0.5))
    return x * T.reinterpret("float32x16", signed) + half


LONG_ACTIVATIONS = (
    "gelu",
    "gelu_tanh",
    "sigmoid",
    "silu",
)  # many instructions: emitted once, in a loop


def split_activation(activation: Activation) -> tuple[Activation, Activation]:
    """What to apply to sums in registers, and what to `activate_in_place` once they are stored.

    Written out for every accumulator, the long ones would take LLVM seconds per kernel.
    """
    if activation.kind in LONG_ACTIVATIONS:
        return Activation(), activation
    return activation, Activation()


def activate_in_place(buffer: Buffer, start: Expr, count: int, activation: Activation) -> None:
    """Apply an activation to `count` consecutive floats; nothing for "none"."""
    if activation.kind == "none":
        return
    full, rest = divmod(count, LANES)
    if full:
        with T.serial(0, full) as v:
            at = T.bind(start + v * LANES)
            store(buffer, at, activate(load(buffer, at), activation))
    if rest:
        at = T.bind(start + full * LANES)
        store(buffer, at, activate(load(buffer, at, rest), activation), rest)


def activate(value: Expr, activation: Activation) -> Expr:
    """The activation of one vector of 16 floats."""
    kind = activation.kind
    if kind == "none":
        return value
    x = T.bind(value)
    if kind == "relu":
        return T.max(x, splat(0.0))
    if kind == "clip":
        return T.min(T.max(x, splat(activation.low)), splat(activation.high))
    if kind in ("hard_sigmoid", "hard_swish"):
        gate = extreme("max", splat(0.0), x * splat(1.0 / 6.0) + splat(0.5))
        gate = extreme("min", splat(1.0), gate)
        return gate if kind == "hard_sigmoid" else x * gate
    if kind == "gelu":
        return gelu(x)
    if kind == "gelu_tanh":
        # (1 + tanh(u)) / 2 is 1 / (1 + e^-2u), which loses nothing where tanh(u) is close to -1.
        cubic = splat(-GELU_TANH[0]) + x * x * splat(-GELU_TANH[1])
        return x / T.bind(splat(1.0) + exp(x * splat(2.0) * cubic))
    if kind in ("sigmoid", "silu"):
        denominator = T.bind(splat(1.0) + exp(splat(0.0) - x))
        return (x if kind == "silu" else splat(1.0)) / denominator
    raise ValueError(f"unknown activation {kind}")
