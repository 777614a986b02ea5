"""Copies of a head's keys and values without gaps, see `plan`."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.attention.plan import Plan
from nmcompile.kernels.avx512.emit import LANES, Buffer, Expr, load, splat, store
from nmcompile.kernels.avx512.lines import Lines, pack_lines, start_of


def pack(plan: Plan, given: list[Buffer], packed: Buffer, head: Expr) -> None:
    """Emit the copies for one head."""
    spec = plan.spec
    keys, values = given[spec.k.operand], given[spec.v.operand]
    at = T.bind(head * plan.packed)
    lines = Lines(spec.keys, spec.size, spec.k.token, spec.k.feature, spec.scale)
    pack_lines(lines, keys, start_of(spec.lead, spec.k, head), packed, at)
    into = T.bind(at + plan.packed_keys)
    _pack_values(plan, values, start_of(spec.lead, spec.v, head), packed, into)


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
