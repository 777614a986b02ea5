"""Copies of a head's keys and values without gaps, see `plan`."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.attention.plan import Plan
from nmcompile.kernels.avx512.emit import (
    LANES,
    Buffer,
    Expr,
    load,
    splat,
    store,
    transpose,
)
from nmcompile.kernels.spec import Attention, Strides


def start_of(spec: Attention, where: Strides, head: Expr) -> Expr:
    """The first element of an operand, for a head counted over the whole batch."""
    start: Expr = T.int32(where.offset)
    behind = spec.heads
    for extent, stride in zip(spec.lead, where.lead, strict=True):
        around, behind = behind, behind // extent
        if stride:
            start = start + head % around // behind * stride
    return T.bind(start)


def pack(plan: Plan, given: list[Buffer], packed: Buffer, head: Expr) -> None:
    """Emit the copies for one head."""
    spec = plan.spec
    keys, values = given[spec.k.operand], given[spec.v.operand]
    at = T.bind(head * plan.packed)
    _pack_keys(spec, keys, start_of(spec, spec.k, head), packed, at)
    into = T.bind(at + plan.packed_keys)
    _pack_values(plan, values, start_of(spec, spec.v, head), packed, into)


def _pack_keys(spec: Attention, keys: Buffer, start: Expr, packed: Buffer, into: Expr) -> None:
    """Vectors of 16 keys, times the scale: [vector][feature][16]."""
    full, rest = divmod(spec.keys, LANES)

    def vector(v: Expr, count: int) -> None:
        base = T.bind(start + v * (LANES * spec.k.token))
        target = T.bind(into + v * (LANES * spec.size))
        whole, ragged = divmod(spec.size, LANES)
        if spec.k.feature != 1:
            with T.serial(0, spec.size) as feature:
                _pack_feature(spec, keys, base, packed, target, feature, count)
            return
        if whole:
            with T.serial(0, whole) as group:
                _pack_square(
                    spec, keys, base + group * LANES, packed, target + group * (LANES * LANES),
                    count, LANES,
                )  # fmt: skip
        if ragged:
            at = whole * LANES
            _pack_square(spec, keys, base + at, packed, target + at * LANES, count, ragged)

    if full:
        with T.serial(0, full) as v:
            vector(v, LANES)
    if rest:
        vector(T.int32(full), rest)


def _pack_square(
    spec: Attention, keys: Buffer, base: Expr, packed: Buffer, target: Expr, count: int, active: int
) -> None:
    """`count` keys of `active` consecutive features, transposed."""
    rows = [
        T.bind(load(keys, base + key * spec.k.token, active)) if key < count else splat(0.0)
        for key in range(LANES)
    ]
    for feature, column in enumerate(transpose(rows)[:active]):
        store(packed, target + feature * LANES, column * splat(spec.scale))


def _pack_feature(
    spec: Attention, keys: Buffer, base: Expr, packed: Buffer, target: Expr, feature: Expr,
    count: int,
) -> None:  # fmt: skip
    """One feature of `count` keys."""
    at = T.bind(base + feature * spec.k.feature)
    into = T.bind(target + feature * LANES)
    if spec.k.token == 1:
        store(packed, into, load(keys, at, count) * splat(spec.scale))
        return
    if count < LANES:
        store(packed, into, splat(0.0))
    with T.serial(0, count) as key:
        value = keys[at + key * spec.k.token] * T.float32(spec.scale)
        T.buffer_store(packed, value, [into + key])


def _pack_values(plan: Plan, values: Buffer, start: Expr, packed: Buffer, into: Expr) -> None:
    """Rows of values, in whole vectors: [key][features]."""
    spec = plan.spec
    with T.serial(0, spec.keys) as key:
        base = T.bind(start + key * spec.v.token)
        target = T.bind(into + key * (plan.value_vectors * LANES))
        for v in range(plan.value_vectors):
            active = min(LANES, spec.value_size - v * LANES)
            if spec.v.feature == 1:
                store(packed, target + v * LANES, load(values, base + v * LANES, active))
                continue
            if active < LANES:
                store(packed, target + v * LANES, splat(0.0))
            with T.serial(0, active) as index:
                feature = T.bind(v * LANES + index)
                T.buffer_store(packed, values[base + feature * spec.v.feature], [target + feature])
