"""The aten operators that are believed in, each as far as it was seen to agree with torch.

What is not here, or outside of its row, is rewritten by `settle.py` or refused by name.
docs/operators.md is made of this.
"""

import torch

from nmcompile.passes.operators.table import Limit, Operator
from nmcompile.passes.operators.torch import limits as must
from nmcompile.passes.operators.torch.quantised import (
    LIBRARY,
    plain_slices,
    quantised_dtype,
    whole_range,
)

FLOAT = frozenset({"float32"})
WHOLE = frozenset({"int8", "uint8", "int16", "int32", "int64"})
BOOL = frozenset({"bool"})
NUMBERS = FLOAT | WHOLE
ANY = NUMBERS | BOOL | {"float16", "bfloat16"}


def _rows(names: str, dtypes: frozenset[str], *limits: Limit) -> tuple[Operator, ...]:
    """Rows of these overloads; `default` where none is given."""
    full = [name if "." in name else f"{name}.default" for name in names.split()]
    return tuple(Operator(f"aten.{name}", dtypes, limits) for name in full)


_ONCE = (must.one_of("alpha", 1),)
_REAL = (must.one_of("out_dtype", None, torch.float32),)

ROWS: tuple[Operator, ...] = (
    # Element by element.
    *_rows("abs square", NUMBERS),
    *_rows("neg sign", NUMBERS - {"uint8"}),
    *_rows(
        "acos acosh asin asinh atan atanh ceil celu cos cosh erf exp expm1 floor hardsigmoid "
        "hardswish hardtanh leaky_relu log log10 log1p log2 prelu reciprocal relu relu6 round "
        "rsqrt sigmoid silu sin sinh softplus sqrt tan tanh trunc mish "
        "log_sigmoid threshold",
        FLOAT,
    ),
    *_rows("gelu", FLOAT),
    *_rows("elu", FLOAT, must.one_of("scale", 1), must.one_of("input_scale", 1)),
    *_rows("clamp clamp_min clamp_max", FLOAT, must.number("min"), must.number("max")),
    *_rows("isfinite isinf isnan", FLOAT),
    *_rows("bitwise_not logical_not", BOOL | WHOLE),
    # Element by element, of two or more.
    *_rows("add.Tensor sub.Tensor rsub.Scalar add.Scalar sub.Scalar", NUMBERS, *_ONCE),
    *_rows("mul.Tensor mul.Scalar", NUMBERS),
    *_rows("div.Tensor div.Scalar", FLOAT),
    *_rows("floor_divide", WHOLE),
    *_rows("remainder.Scalar remainder.Tensor", NUMBERS),
    *_rows("maximum minimum", NUMBERS, must.same_dtype),
    *_rows("pow.Tensor_Scalar pow.Tensor_Tensor", FLOAT),
    *_rows("eq.Scalar ne.Scalar", NUMBERS | BOOL, must.fitting_number),
    *_rows("eq.Tensor ne.Tensor", NUMBERS | BOOL, must.no_mixed_truth),
    *_rows("ge.Scalar ge.Tensor gt.Scalar gt.Tensor", NUMBERS),
    *_rows("le.Scalar le.Tensor lt.Scalar lt.Tensor", NUMBERS),
    *_rows("logical_and logical_or logical_xor", BOOL),
    *_rows("bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor", BOOL | WHOLE),
    *_rows("where.self", BOOL),
    *_rows("masked_fill.Scalar", NUMBERS),
    # Along channels and images.
    *_rows("conv1d conv1d.padding", FLOAT, must.ranks(3), must.not_planar),
    *_rows("conv2d conv2d.padding", FLOAT, must.ranks(4)),
    *_rows("conv3d conv3d.padding", FLOAT, must.ranks(5), must.not_planar),
    *_rows("convolution", FLOAT, must.ranks(3, 4, 5), must.not_planar),
    *_rows("conv_transpose1d", FLOAT, must.ranks(3), must.not_planar),
    *_rows("conv_transpose2d.input", FLOAT, must.ranks(4), must.not_planar),
    *_rows("linear matmul mm bmm", FLOAT),
    *_rows("addmm baddbmm", FLOAT, *_ONCE, must.one_of("beta", 1)),
    *_rows("einsum", FLOAT),
    *_rows("avg_pool1d", FLOAT, must.ranks(3)),
    *_rows("avg_pool2d", FLOAT, must.ranks(4), must.one_of("divisor_override", None)),
    *_rows("avg_pool3d", FLOAT, must.ranks(5), must.one_of("divisor_override", None)),
    *_rows("max_pool1d", FLOAT, must.ranks(3)),
    *_rows("max_pool2d", FLOAT, must.ranks(4)),
    *_rows("max_pool3d", FLOAT, must.ranks(5)),
    *_rows("adaptive_avg_pool1d", FLOAT, must.ranks(3)),
    *_rows("adaptive_avg_pool2d", FLOAT, must.ranks(4)),
    *_rows("adaptive_avg_pool3d", FLOAT, must.ranks(5)),
    *_rows("_native_batch_norm_legit_no_training", FLOAT, must.only_outputs(0)),
    *_rows(
        "instance_norm",
        FLOAT,
        must.one_of("use_input_stats", True),
        must.one_of("running_mean", None),
    ),
    *_rows("group_norm", FLOAT, must.given("weight"), must.given("bias")),
    *_rows("layer_norm", FLOAT),
    *_rows("softmax.int log_softmax.int", FLOAT, must.one_of("dtype", None, torch.float32)),
    *_rows("scaled_dot_product_attention", FLOAT, must.ranks(4), must.one_of("attn_mask", None),
           must.one_of("dropout_p", 0.0), must.one_of("enable_gqa", False)),
    *_rows("pixel_shuffle pixel_unshuffle channel_shuffle", FLOAT, must.ranks(4)),
    *_rows("embedding", FLOAT),
    # Reductions.
    *_rows("mean mean.dim sum sum.dim_IntList", FLOAT),
    *_rows("max.default min.default prod.default amax amin", FLOAT),
    *_rows("argmax argmin", FLOAT, must.ranks(1, 2, 3, 4, 5)),
    *_rows("var.correction std.correction linalg_vector_norm norm.ScalarOpt_dim", FLOAT),
    # Elements moved.
    *_rows("alias clone detach", ANY),
    *_rows("_to_copy type_as", ANY),
    *_rows("cat concat stack", ANY, must.same_dtype, must.filled),
    *_rows("split.Tensor split_with_sizes unbind.int slice.Tensor", ANY),
    *_rows("select.int", ANY, must.at_least("index", 0)),
    *_rows("expand repeat tile", ANY),
    *_rows("permute reshape transpose.int t", ANY),
    *_rows("squeeze squeeze.dim squeeze.dims unsqueeze", ANY),
    *_rows("flip roll", ANY),
    *_rows("gather index_select", NUMBERS | BOOL),
    *_rows("index.Tensor", ANY, must.one_index, must.from_front),
    *_rows("pad constant_pad_nd", FLOAT),
    *_rows("tril triu", FLOAT),
    *_rows("arange arange.start arange.start_step full full_like ones zeros ones_like", ANY),
    *_rows("zeros_like new_ones new_zeros scalar_tensor", ANY),
    # Integers that stand for real numbers.
    Operator(f"{LIBRARY}.quantize_per_tensor.default", FLOAT, (quantised_dtype,)),
    Operator(
        f"{LIBRARY}.quantize_per_channel.default",
        FLOAT,
        (quantised_dtype, plain_slices, whole_range),
    ),
    Operator(f"{LIBRARY}.dequantize_per_tensor.default", WHOLE - {"int64"}, _REAL),
    Operator(
        f"{LIBRARY}.dequantize_per_channel.default", WHOLE - {"int64"}, (plain_slices, *_REAL)
    ),
)  # fmt: skip

TABLE = {row.name: row for row in ROWS}
