"""Attention of several heads, and the turning of queries and keys by their places."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import onnx_ir as ir

from nmcompile.passes.operators.onnx.contributed.writing import Writing
from nmcompile.passes.operators.onnx.limits import attribute, operand
from nmcompile.passes.operators.onnx.rewriting import Reason


def rewrite_multi_head(new: Writing) -> None:
    """MultiHeadAttention of queries (batch, tokens, features); keys and values like these.

    Keys and values may also be (batch, heads, tokens, size), as from a cache.
    """
    new.refuse_inputs(past_sequence_length=8, cache_indirection=9)
    new.refuse_outputs(qk=3)
    heads = int(new.number("num_heads"))
    parts = [new.given(index, name) for index, name in enumerate(("query", "key", "value"))]
    ranks = [len(new.extents(part)) for part in parts]
    if ranks[0] != 3 or any(rank not in (3, 4) for rank in ranks):
        raise Reason(f"its queries, keys and values have {ranks} dimensions, not 3 each")
    bias = new.maybe(3, "bias")
    if bias is not None:
        if ranks != [3, 3, 3]:
            raise Reason("it has a bias for keys or values that are parted into heads")
        sizes = [new.extents(part)[-1] for part in parts]
        if new.extents(bias) != (sum(sizes),):
            raise Reason(f"its bias is of shape {new.extents(bias)}, not {(sum(sizes),)}")
        rows = _split(new, bias, sizes)
        parts = [new.add("Add", x, row) for x, row in zip(parts, rows, strict=True)]
    q, k, v = (
        _parted(new, x, heads) if rank == 3 else x for x, rank in zip(parts, ranks, strict=True)
    )
    size = new.extents(new.operand(0, "query"))[-1] // heads
    past = new.maybe(6, "past_key"), new.maybe(7, "past_value")
    if None not in past:
        k, v = (new.add("Concat", old, x, axis=2) for old, x in zip(past, (k, v), strict=True))
    elif past != (None, None):
        raise Reason("it has keys or values of the past, but not both")
    made = _attend(new, q, k, v, size, mask_at=4, bias_at=5)
    new.finish_all(made, k, v)


def rewrite_packed(new: Writing) -> None:
    """Attention: queries, keys and values by one matrix, then as above."""
    new.refuse_inputs(past=4, past_sequence_length=6)
    new.refuse_outputs(present=1)
    for name in ("do_rotary", "past_present_share_buffer"):
        new.expect(name, 0)
    heads, weights = int(new.number("num_heads")), new.given(1, "weights")
    x, bias, features = new.given(0, "input"), new.maybe(2, "bias"), new.extents(weights)[-1]
    sizes = attribute(new.node, "qkv_hidden_sizes", (features // 3,) * 3)
    if len(sizes) != 3 or sum(sizes) != features or sizes[0] != sizes[1]:
        raise Reason(f"its qkv_hidden_sizes are {sizes} for {features} features")
    made = new.layer("MatMul", x, weights)
    made = made if bias is None else new.add("Add", made, bias)
    q, k, v = (_parted(new, part, heads) for part in _split(new, made, sizes))
    new.finish_all(_attend(new, q, k, v, sizes[0] // heads, mask_at=3, bias_at=5))


def _split(new: Writing, x: ir.Value, sizes: Sequence[int]) -> list[ir.Value]:
    """Parts of the last axis, one after another; of a constant they are constants."""
    ends, held = list(itertools.accumulate(sizes, initial=0)), new.graph.constant(x)
    if held is not None:
        return [new.constant(held[..., a:b]) for a, b in itertools.pairwise(ends)]
    return [new.sliced(x, a, b) for a, b in itertools.pairwise(ends)]


def _parted(new: Writing, x: ir.Value, heads: int) -> ir.Value:
    """(batch, tokens, features) as (batch, heads, tokens, size)."""
    return new.add("Transpose", new.reshaped(x, 0, 0, heads, -1), perm=[0, 2, 1, 3])


def _attend(
    new: Writing, q: ir.Value, k: ir.Value, v: ir.Value, size: int, *, mask_at: int, bias_at: int
) -> ir.Value:
    """softmax(scale q k^T + masks) v, heads joined."""
    new.expect("unidirectional", 0)
    scale = new.number("scale", 0.0) or 1 / math.sqrt(size)
    scores = new.add("MatMul", q, new.add("Transpose", k, perm=[0, 1, 3, 2]))
    scores = new.add("Mul", scores, new.real(scale))
    mask, bias = operand(new.node, mask_at), new.maybe(bias_at, "attention_bias")
    if mask is not None:
        # (batch, keys): 1 where there is something to be seen.
        if len(new.extents(mask)) != 2 or new.graph.dtype(mask) not in ("int32", "int64"):
            raise Reason(f"its mask {mask.name} is not of integers (batch, keys)")
        lowest = new.real(new.number("mask_filter_value", -10000.0))
        seen = new.add("Cast", mask, to=int(ir.DataType.BOOL))
        seen.type = ir.TensorType(ir.DataType.BOOL)
        hidden = new.add("Where", seen, new.real(0), lowest)
        hidden.type = ir.TensorType(ir.DataType.FLOAT)
        batch, keys = new.extents(mask)
        scores = new.add("Add", scores, new.reshaped(hidden, batch, 1, 1, keys))
    if bias is not None:
        scores = new.add("Add", scores, bias)
    made = new.add("MatMul", new.add("Softmax", scores, axis=-1), v)
    return new.reshaped(new.add("Transpose", made, perm=[0, 2, 1, 3]), 0, 0, -1)


def rewrite_rotary(new: Writing) -> None:
    """RotaryEmbedding: halves of each head's features turned by the angles of their places."""
    for name in ("interleaved", "is_packed_batching"):
        new.expect(name, 0)
    new.expect("scale", 1.0)
    x, places = new.given(0, "input"), new.operand(1, "position_ids")
    tables = new.given(2, "cos_cache"), new.given(3, "sin_cache")
    half, rank = new.extents(tables[0])[-1], len(new.extents(x))
    if len(new.extents(places)) != 2:
        raise Reason("its position_ids are not (batch, tokens)")
    heads, turned = (int(new.number(name, 0)) for name in ("num_heads", "rotary_embedding_dim"))
    if (turned and not heads and rank == 3) or turned not in (0, 2 * half):
        raise Reason(f"its rotary_embedding_dim is {turned} for {half} angles and {heads} heads")
    if rank == 3:
        heads = heads or new.extents(x)[-1] // (2 * half)
        size = new.extents(x)[-1] // heads
        x = new.reshaped(x, 0, 0, heads, size)
    else:
        size = new.extents(x)[-1]
    batch, tokens = new.extents(places)
    lie = (batch, tokens, 1, half) if rank == 3 else (batch, 1, tokens, half)
    cos, sin = (new.reshaped(new.add("Gather", table, places, axis=0), *lie) for table in tables)
    left, right = new.sliced(x, 0, half), new.sliced(x, half, 2 * half)
    first = new.add("Sub", new.add("Mul", left, cos), new.add("Mul", right, sin))
    second = new.add("Add", new.add("Mul", left, sin), new.add("Mul", right, cos))
    rest = [new.sliced(x, 2 * half, size)] if size > 2 * half else []
    made = new.add("Concat", first, second, *rest, axis=-1)
    new.finish_all(new.reshaped(made, 0, 0, heads * size) if rank == 3 else made)
