"""ONNX files with something changed: compiled, or refused by an error of ours."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

import nmcompile
from nmcompile.errors import NmcompileError
from nmcompile.runtime import load
from tests.fuzz.artifacts import inputs_of

NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    5,
    16,
    17,
    1 << 20,
    1 << 31,
    (1 << 31) - 1,
    (1 << 40),
    (1 << 63) - 1,
    -(1 << 63),
]
OPERATORS = """
Conv Relu Add Mul MaxPool AveragePool GlobalAveragePool Flatten Gemm MatMul Softmax
Concat Split Transpose Reshape Pad Clip BatchNormalization Squeeze Unsqueeze ReduceMean Cast Shape
Gather Slice Resize ConvTranspose Identity SequenceConstruct SplitToSequence If Loop Constant Expand
Where NoSuchOperator
""".split()

Mutation = Callable[[onnx.ModelProto, random.Random], None]


def mutate(proto: onnx.ModelProto, seed: int) -> bytes:
    """The bytes of a model with one or two changes."""
    rng = random.Random(seed)
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    for _ in range(rng.choice((1, 1, 2))):
        rng.choice(MUTATIONS)(changed, rng)
    data = bytearray(changed.SerializeToString())
    if rng.random() < 0.1:
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def _dims(proto: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(proto.graph.initializer)
    if tensor.dims and rng.random() < 0.7:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(NUMBERS)
    elif rng.random() < 0.5:
        tensor.dims.append(1)
    elif tensor.dims:
        tensor.dims.pop()


def _same_size(proto: onnx.ModelProto, rng: random.Random) -> None:
    """Another shape of as many elements."""
    tensor = rng.choice(proto.graph.initializer)
    dims = list(tensor.dims)
    rng.shuffle(dims)
    if rng.random() < 0.5:
        dims = [int(np.prod(dims))]
    del tensor.dims[:]
    tensor.dims.extend(dims)


def _dtype(proto: onnx.ModelProto, rng: random.Random) -> None:
    rng.choice(proto.graph.initializer).data_type = rng.randrange(0, 27)


def _raw(proto: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(proto.graph.initializer)
    data = tensor.raw_data
    tensor.raw_data = rng.choice((data[:-1], data[: len(data) // 2], data + b"\0" * 4, b""))


def _numbers_elsewhere(proto: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(proto.graph.initializer)
    tensor.float_data.extend([1.0, float("nan")])
    if rng.random() < 0.5:
        tensor.ClearField("raw_data")


def _external(proto: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(proto.graph.initializer)
    tensor.data_location = TensorProto.EXTERNAL
    places = ["/etc/passwd", "../x", "nowhere", "", ".", "m.onnx", "\0", "x" * 5000, "/dev/zero"]
    for key, value in (
        ("location", rng.choice(places)),
        ("offset", str(rng.choice([*NUMBERS, "x", "1e3"]))),
        ("length", str(rng.choice([*NUMBERS, ""]))),
    ):
        tensor.external_data.add(key=key, value=value)


def _attribute(proto: onnx.ModelProto, rng: random.Random) -> None:
    attributes = [a for node in proto.graph.node for a in node.attribute]
    if not attributes:
        return
    attribute = rng.choice(attributes)
    if attribute.ints and rng.random() < 0.7:
        if rng.random() < 0.7:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(NUMBERS)
        else:
            attribute.ints.append(1)
    elif rng.random() < 0.5:
        attribute.i = rng.choice(NUMBERS)
        attribute.f = rng.choice((0.0, float("nan"), float("inf"), -1e-9))
    else:
        attribute.type = rng.randrange(0, 15)


def _new_attribute(proto: onnx.ModelProto, rng: random.Random) -> None:
    name = rng.choice(("axis", "group", "pads", "strides", "dilations", "auto_pad", "mode", "perm"))
    value: Any = rng.choice([*NUMBERS, [1, 1], [0] * 4, [-1], "SAME_UPPER", "x", 0.5, [0.5]])
    rng.choice(proto.graph.node).attribute.append(helper.make_attribute(name, value))


def _operator(proto: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice(proto.graph.node)
    node.op_type = rng.choice(OPERATORS)
    if rng.random() < 0.5:
        del node.attribute[:]


def _wiring(proto: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice(proto.graph.node)
    names = [name for other in proto.graph.node for name in (*other.input, *other.output)] + [
        "", "nowhere", "x",
    ]  # fmt: skip
    kind = rng.randrange(5)
    if kind == 0 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(names)
    elif kind == 1:
        node.input.append(rng.choice(names))
    elif kind == 2 and node.input:
        node.input.pop()
    elif kind == 3:
        node.output[0] = rng.choice(names)
    else:
        node.output.append(rng.choice(names))


def _value(proto: onnx.ModelProto, rng: random.Random) -> None:
    """A declared input or output."""
    value = rng.choice([*proto.graph.input, *proto.graph.output])
    kind = rng.randrange(6)
    if kind == 0:
        shape: list[Any] = [rng.choice([*NUMBERS, "n", None]) for _ in range(rng.randrange(6))]
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, shape))
    elif kind == 1:
        value.type.tensor_type.elem_type = rng.randrange(0, 27)
    elif kind == 2:
        value.CopyFrom(helper.make_tensor_sequence_value_info(value.name, 1, [1, 3]))
    elif kind == 3:
        value.ClearField("type")
    elif kind == 4 and value.type.tensor_type.shape.dim:
        rng.choice(value.type.tensor_type.shape.dim).dim_value = rng.choice(NUMBERS)
    else:
        value.name = rng.choice(("", "nowhere", "\x1b[31m", "w"))


def _lists(proto: onnx.ModelProto, rng: random.Random) -> None:
    graph = proto.graph
    table: Any = rng.choice((graph.node, graph.initializer, graph.input, graph.output))
    if not table:
        return
    index = rng.randrange(len(table))
    if rng.random() < 0.5:
        table.append(table[index])
    else:
        del table[index]


def _versions(proto: onnx.ModelProto, rng: random.Random) -> None:
    kind = rng.randrange(4)
    if kind == 0 and proto.opset_import:
        proto.opset_import[0].version = rng.choice((0, 1, 6, 7, 9, 11, 13, 18, 22, 99, -1))
    elif kind == 1:
        proto.ir_version = rng.choice((0, 1, 2, 3, 4, 99))
    elif kind == 2:
        proto.opset_import.append(helper.make_opsetid("com.example", 1))
    else:
        del proto.opset_import[:]


MUTATIONS: list[Mutation] = [
    _dims, _same_size, _dtype, _raw, _numbers_elsewhere, _external, _attribute, _new_attribute,
    _operator, _wiring, _value, _lists, _versions,
]  # fmt: skip


def check(base: Path, scratch: Path, seed: int) -> str:
    """Compile a changed copy of a model, and run what comes out: "refused" or "compiled"."""
    path = scratch / "m.onnx"
    path.write_bytes(mutate(onnx.load(base), seed))
    try:
        nmcompile.compile(path, output=scratch / "m.nmc")
        with load(scratch / "m.nmc", threads=1) as session:
            values = inputs_of(session.manifest.forms[0])
            names = [spec.name for spec in session.inputs]
            session.run(dict(zip(names, values, strict=True)))
    except NmcompileError:
        return "refused"
    return "compiled"
