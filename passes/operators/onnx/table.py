"""The ONNX operators that are believed in, each as far as `tests/conformance` has seen it right.

What is not here, or outside of its row, is rewritten by `settle.py` or refused by name.
docs/operators.md is made of this.
"""

from nmcompile.passes.operators.onnx import limits as must
from nmcompile.passes.operators.table import Limit, Operator

FLOAT = frozenset({"float32"})
SMALL = frozenset({"int8", "uint8", "int16", "uint16"})
WHOLE = SMALL | {"int32", "int64"}
BOOL = frozenset({"bool"})
NUMBERS = FLOAT | WHOLE
ANY = NUMBERS | BOOL
HALF = frozenset({"float16"})
MOVED = ANY | HALF


def _rows(
    names: str, newest: int, dtypes: frozenset[str], *limits: Limit, oldest: int = 1
) -> tuple[Operator, ...]:
    return tuple(Operator(name, dtypes, limits, newest, oldest) for name in names.split())


_AXES = must.constants((1, "axes"))

ROWS: tuple[Operator, ...] = (
    # Element by element.
    *_rows("Abs Neg", 13, FLOAT | {"int32", "int64"}),
    *_rows("Ceil Erf Exp Floor Log Reciprocal Sigmoid Sqrt Tanh", 13, FLOAT),
    *_rows("Acos Acosh Asin Asinh Atan Atanh Cos Cosh Sin Sinh Tan", 28, FLOAT),
    *_rows("Elu HardSigmoid HardSwish Round Selu Softsign", 28, FLOAT),
    *_rows("Gelu", 20, FLOAT),
    *_rows("LeakyRelu", 16, FLOAT),
    *_rows("Relu", 14, FLOAT),
    *_rows("Shrink", 9, FLOAT),
    *_rows("PRelu", 16, FLOAT, must.slope_along_end),
    *_rows("Clip", 13, FLOAT | {"int8", "int32", "int64"}, oldest=11),
    *_rows("Identity", 28, MOVED),
    *_rows("Cast", 28, MOVED, must.output_dtypes(MOVED)),
    *_rows("CastLike", 28, MOVED, must.output_dtypes(MOVED)),
    *_rows("IsNaN", 28, FLOAT | HALF),
    *_rows(
        "IsInf", 28, FLOAT | HALF, must.one_of("detect_negative", 1),
        must.one_of("detect_positive", 1),
    ),
    *_rows("Not", 1, BOOL),
    *_rows("BitwiseNot", 18, WHOLE),
    # Element by element, of two or more.
    *_rows("Add Sub Mul Div", 14, NUMBERS),
    *_rows("Pow", 15, FLOAT, must.same_dtype),
    *_rows("Mod", 28, NUMBERS | HALF, must.floats_by_fmod),
    *_rows("Max Min", 13, NUMBERS | HALF),
    *_rows("Mean Sum", 13, FLOAT),
    *_rows("Equal", 19, ANY),
    *_rows("Greater Less", 13, NUMBERS),
    *_rows("GreaterOrEqual LessOrEqual", 16, NUMBERS),
    *_rows("And Or Xor", 7, BOOL),
    *_rows("BitwiseAnd BitwiseOr BitwiseXor", 18, WHOLE),
    *_rows("BitShift", 28, WHOLE, must.within_width),
    *_rows("Where", 16, BOOL),
    # Along channels and images.
    *_rows("Conv", 22, FLOAT, must.ranks(3, 4, 5), must.not_planar),
    *_rows(
        "ConvTranspose", 22, FLOAT, must.ranks(3, 4), must.absent("output_shape"),
        must.one_of("auto_pad", "NOTSET", "VALID"), must.not_planar,
    ),
    *_rows("Gemm", 13, FLOAT),
    *_rows("MatMul", 13, FLOAT),
    *_rows("MatMulInteger", 10, frozenset({"uint8"})),
    *_rows("AveragePool", 22, FLOAT, must.ranks(3, 4, 5)),
    *_rows(
        "MaxPool", 22, FLOAT | {"int8", "uint8"}, must.ranks(3, 4, 5), must.first_output,
        must.one_of("auto_pad", "NOTSET", "SAME_UPPER", "VALID"), oldest=8,
    ),
    *_rows("LpPool", 22, FLOAT, must.ranks(3, 4, 5)),
    *_rows("GlobalAveragePool GlobalMaxPool", 22, FLOAT, must.ranks(3, 4, 5)),
    *_rows(
        "BatchNormalization", 15, FLOAT, must.one_of("training_mode", 0), must.first_output,
        oldest=9,
    ),
    *_rows("InstanceNormalization", 22, FLOAT),
    *_rows("GroupNormalization", 21, FLOAT, oldest=21),
    *_rows("LayerNormalization", 17, FLOAT, must.one_of("stash_type", 1), must.first_output),
    *_rows("MeanVarianceNormalization", 13, FLOAT),
    *_rows("LRN", 13, FLOAT),
    *_rows("Softmax LogSoftmax", 13, FLOAT, oldest=11),
    *_rows("Hardmax", 13, FLOAT, oldest=11),
    *_rows("Resize", 19, FLOAT, must.native_resize, oldest=11),
    *_rows("GridSample", 22, FLOAT, must.ranks(4, 5)),
    *_rows("RoiAlign", 22, FLOAT, must.one_of("mode", "avg")),
    *_rows("DepthToSpace", 28, FLOAT, must.ranks(4)),
    *_rows("SpaceToDepth", 28, FLOAT, must.ranks(4), must.one_of("mode", "DCR")),
    *_rows("Dropout", 22, FLOAT, must.no_training, must.first_output, oldest=7),
    # Reductions.
    *_rows("ReduceMax ReduceMin", 20, FLOAT, *_AXES, must.known_shape),
    *_rows("ReduceMean ReduceProd", 18, FLOAT, *_AXES, must.known_shape),
    *_rows("ReduceL1 ReduceL2 ReduceSumSquare", 18, FLOAT, *_AXES, must.known_shape),
    *_rows("ReduceLogSum ReduceLogSumExp", 28, FLOAT, *_AXES, must.known_shape),
    *_rows("ReduceSum", 13, FLOAT | {"int32", "int64"}, *_AXES, must.known_shape),
    *_rows("ArgMax ArgMin", 13, FLOAT, oldest=11),
    # Elements moved.
    *_rows("Concat", 13, MOVED, must.filled),
    *_rows("Expand", 13, MOVED, *must.constants((1, "shape")), must.known_shape),
    *_rows("Flatten", 28, MOVED),
    *_rows("Gather", 13, MOVED),
    *_rows("GatherElements GatherND", 13, ANY),
    *_rows(
        "Pad", 28, FLOAT | {"int32", "int64"},
        *must.constants((1, "pads"), (2, "value"), (3, "axes")), must.known_shape, oldest=11,
    ),
    *_rows("Reshape", 28, MOVED, *must.constants((1, "shape")), must.known_shape, must.no_zero),
    *_rows("Scatter", 9, FLOAT),
    *_rows("ScatterElements ScatterND", 18, FLOAT),
    *_rows(
        "Slice", 13, MOVED,
        *must.constants((1, "starts"), (2, "ends"), (3, "axes"), (4, "steps")),
        must.known_shape, oldest=10,
    ),
    *_rows("Split", 18, MOVED, *must.constants((1, "split")), must.known_shape, must.filled),
    *_rows("Squeeze Unsqueeze", 28, MOVED, *_AXES, must.list_of(1, "axes"), must.known_shape),
    *_rows("Tile", 13, MOVED, *must.constants((1, "repeats")), must.known_shape),
    *_rows("Transpose", 28, MOVED),
    *_rows("Trilu", 14, ANY, *must.constants((1, "k"))),
    *_rows(
        "OneHot", 28, NUMBERS, *must.constants((1, "depth")),
        must.dtypes_of(1, "depth", {"int32", "int64"}), must.known_shape,
    ),
    # Integers that stand for real numbers.
    *_rows(
        "QuantizeLinear", 28, FLOAT, must.one_of("block_size", 0),
        must.output_dtypes({"int8", "uint8", "int16", "uint16"}),
    ),
    *_rows("DequantizeLinear", 28, SMALL | {"int32"}, must.one_of("block_size", 0)),
)  # fmt: skip

TABLE = {row.name: row for row in ROWS}
