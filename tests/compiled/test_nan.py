"""NaN and the infinities come through every kernel and operator as they do through torch."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from nmcompile import compile, runtime
from nmcompile.kernels.catalog import CATALOG, Kernel, choose
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import Conv2d, Epilogue, Linear, Pool2d
from nmcompile.sparsity import NM, OneByN, Pattern, detect, project
from tests.support.kernel_runner import (
    ACTIVATIONS,
    activation,
    compile_kernel,
    output_shape,
    reference,
)

SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -4.0, 7.0], np.float32)
OPS = ("conv2d", "linear", "pool2d", "global_average")  # others have tests of their own
ROWS = [row for row in CATALOG if row.target == "avx512" and row.op in OPS]
POOLS = [
    Pool2d("max", 2, 3, 20, 37, 10, 19, (3, 3), (2, 2), (1, 1, 1, 1)),
    Pool2d("max", 2, 3, 12, 8, 6, 4, (2, 2), (2, 2), (0, 0, 0, 0)),
    Pool2d("max", 1, 2, 20, 20, 20, 20, (7, 7), (1, 1), (3, 3, 3, 3)),
    Pool2d("max", 1, 2, 30, 40, 28, 37, (3, 2), (1, 1), (1, 0, 1, 0), (2, 3)),
]


def special(shape: tuple[int, ...], share: float = 1.0) -> npt.NDArray[np.float32]:
    """Random numbers, and among them a share of special ones."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(SPECIAL, shape)
    numbers = rng.standard_normal(shape, np.float32)
    return np.asarray(np.where(rng.random(shape) < share, drawn, numbers), np.float32)


def same(found: npt.NDArray[np.float32], expected: npt.NDArray[np.generic]) -> bool:
    return bool(np.isclose(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True).all())


@functools.cache
def compiled_row(row: Kernel, kind: str) -> Callable[..., npt.NDArray[np.float32]]:
    """The row for `problem_of`."""
    return compile_kernel(row, problem_of(row, kind))


@functools.cache
def problem_of(row: Kernel, kind: str) -> Problem:
    """One that the row computes, with a residual where it has weights."""
    if row.op == "pool2d":
        return Problem(POOLS[0])
    pattern: Pattern | None = None
    conv = Conv2d(1, 32, 9, 9, 32, (3, 3), (1, 1), (1, 1, 1, 1))
    if "one_by_n" in row.name:
        pattern = OneByN(16)
    elif "_nm_" in row.name:
        pattern = NM(2, 4)
    elif "depthwise" in row.name:
        conv = Conv2d(1, 32, 9, 9, 32, (3, 3), (1, 1), (1, 1, 1, 1), groups=32)
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((32, conv.group_in, 3, 3)).astype(np.float32)
    spec: Conv2d | Linear = conv
    if row.op == "linear":
        spec, weight = Linear((7,), 20, 70), rng.standard_normal((70, 20)).astype(np.float32)
    if pattern is not None:
        weight = project(weight, pattern, 0.5)
    bias = rng.standard_normal(len(weight)).astype(np.float32)
    epilogue = Epilogue(True, True, activation(kind))
    return Problem(spec, epilogue, weight, bias, detect(weight))


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        pytest.param(row, kind, id=f"{row.name}-{kind}")
        for row in ROWS
        if row.op in ("conv2d", "linear")
        for kind in ACTIVATIONS
        # All rows write activations with the same words: one row tries all of them.
        if kind in ("relu", "silu") or row.name.startswith("conv2d_f32_dense")
    ],
)
def test_epilogues_treat_what_is_no_number_as_torch_does(row: Kernel, kind: str) -> None:
    problem = problem_of(row, kind)
    assert row.refuse(problem) is None
    shape = (1, 32, 9, 9) if row.op == "conv2d" else (7, 20)
    x = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    residual = special(output_shape(problem))
    expected = reference(problem, x, residual)
    assert same(compiled_row(row, kind)(x, residual), expected)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_image_of_nan_leaves_no_number(row: Kernel) -> None:
    if row.op == "global_average":
        return  # its sum is of all pixels, as the reference's
    problem = problem_of(row, "relu")
    shape = {"pool2d": (2, 3, 20, 37), "linear": (7, 20)}.get(row.op, (1, 32, 9, 9))
    x = np.full(shape, np.nan, np.float32)
    residual = np.ones(output_shape(problem), np.float32) if problem.epilogue.residual else None
    assert np.isnan(compiled_row(row, "relu")(x, residual)).all()


@pytest.mark.parametrize("pool", POOLS)
def test_max_pooling_treats_what_is_no_number_as_torch_does(pool: Pool2d) -> None:
    problem = Problem(pool)
    compiled = compile_kernel(choose("pool2d", "avx512", problem).kernel, problem)
    for share in (0.02, 1.0):
        x = special((pool.batch, pool.channels, pool.in_height, pool.in_width), share)
        x[-1, -1] = -np.inf
        expected = functional.max_pool2d(
            torch.from_numpy(x), pool.kernel, pool.stride, pool.padding[:2], pool.dilation
        )
        assert np.array_equal(compiled(x, None), expected.numpy(), equal_nan=True), share


class Everything(nn.Module):
    """What TVM lowers itself: no convolution goes before."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        results = {name: function(x) for name, function in ACTIVATIONS.items() if name != "none"}
        return results | {
            "relu6": functional.relu6(x),
            "hardtanh": functional.hardtanh(x),
            "leaky_relu": functional.leaky_relu(x),
            "elu": functional.elu(x),
            "clamp_min": x.clamp(min=0.5),
            "clamp_max": x.clamp(max=0.5),
            "maximum": torch.maximum(x, y),
            "minimum": torch.minimum(x, y),
            "sum": x.sum(dim=1),
            "mean": x.mean(dim=3),
            "softmax": x.softmax(dim=1),
            "abs": x.abs(),
            "max_pool": functional.max_pool2d(x, 17, 1),
        }


def test_operators_of_tvm_treat_what_is_no_number_as_torch_does(tmp_path: object) -> None:
    model = Everything().eval()
    x, y = (torch.from_numpy(special((1, 3, 18, 18), share)) for share in (0.05, 0.5))
    compile(model, output=f"{tmp_path}/m.nmc", example_inputs=(x, y))
    with runtime.load(f"{tmp_path}/m.nmc", threads=1) as session:
        found = session.run({"x": x.numpy(), "y": y.numpy()})
    # In float64: torch's own float32 gelu makes NaN of infinity.
    expected = model(x.double(), y.double())
    wrong = [name for name, e in expected.items() if not same(found[name], e.numpy())]
    assert wrong == []


def test_onnx_operators_treat_what_is_no_number_as_torch_does(tmp_path: object) -> None:
    expected: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "ReduceMax": lambda x: x.amax((2, 3), keepdim=True),
        "ReduceMin": lambda x: x.amin((2, 3), keepdim=True),
        "GlobalMaxPool": lambda x: x.amax((2, 3), keepdim=True),
        "Relu": torch.relu,
        "Clip": lambda x: x.clamp(-1, 2),
        "HardSigmoid": lambda x: (x * 0.2 + 0.5).clamp(0, 1),
    }
    x = special((2, 3, 5, 7), 0.1)
    nodes = []
    for name in expected:
        given = ["x", "low", "high"] if name == "Clip" else ["x"]
        axes = {"axes": [2, 3]} if name.startswith("Reduce") else {}
        nodes.append(helper.make_node(name, given, [name], **axes))  # type: ignore[arg-type]
    tensor = helper.make_tensor_value_info
    limits = [
        numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("low", -1), ("high", 2))
    ]
    outputs = [tensor(name, TensorProto.FLOAT, None) for name in expected]
    graph = helper.make_graph(
        nodes, "g", [tensor("x", TensorProto.FLOAT, x.shape)], outputs, limits
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    compile(model, output=f"{tmp_path}/m.nmc")
    with runtime.load(f"{tmp_path}/m.nmc", threads=1) as session:
        found = session.run(x)
    data = torch.from_numpy(x)
    assert [n for n, f in expected.items() if not same(found[n], f(data).numpy())] == []


def test_inputs_with_the_negative_bit_are_read_as_they_are(tmp_path: object) -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x

    x = torch.randn(1, 4, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    compile(Twice(), output=f"{tmp_path}/m.nmc", example_inputs=(x,))
    with runtime.load(f"{tmp_path}/m.nmc", threads=1) as session:
        (found,) = session.run(x).values()
    assert np.array_equal(found, (x + x).numpy(force=True))


def test_maxima_begin_at_infinity_and_masks_keep_the_largest_number(tmp_path: Path) -> None:
    lowest = np.float32(np.finfo(np.float32).min)
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["highest"], axes=[1], keepdims=0),
        helper.make_node("Where", ["keep", "x", "lowest"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["y"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "masks",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 8]),
            helper.make_tensor_value_info("keep", TensorProto.BOOL, [3, 8]),
        ],
        [
            helper.make_tensor_value_info("highest", TensorProto.FLOAT, [3]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 8]),
        ],
        [numpy_helper.from_array(np.full((3, 8), lowest), "lowest")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = compile(model, output=tmp_path / "masks.nmc").path
    x = np.zeros((3, 8), np.float32)
    x[0] = -np.inf
    keep = np.ones((3, 8), bool)
    keep[1] = False  # all of a row is masked: each has the same share
    found = runtime.load(path, threads=1).run({"x": x, "keep": keep})
    np.testing.assert_array_equal(found["highest"], x.max(1))
    expected = torch.from_numpy(np.where(keep, x, lowest)).softmax(1).numpy()
    np.testing.assert_allclose(found["y"], expected, rtol=1e-6)


def test_negated_comparisons_of_nan_are_true(tmp_path: Path) -> None:
    compared = {
        "Equal": np.equal,
        "Less": np.less,
        "Greater": np.greater,
        "LessOrEqual": np.less_equal,
        "GreaterOrEqual": np.greater_equal,
    }
    nodes = [helper.make_node("Equal", ["p", "q"], ["alike"])]
    for name in compared:
        nodes.append(helper.make_node(name, ["x", "y"], [f"{name}_held"]))
        nodes.append(helper.make_node("Not", [f"{name}_held"], [name]))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "comparisons",
        [value(name, TensorProto.FLOAT, [4]) for name in "xy"]
        + [value(name, TensorProto.BOOL, [4]) for name in "pq"],
        [value(name, TensorProto.BOOL, [4]) for name in ("alike", *compared)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = compile(model, output=tmp_path / "m.nmc").path
    x = np.array([1, np.nan, 3, np.inf], np.float32)
    y = np.array([1, np.nan, 2, np.nan], np.float32)
    p, q = np.array([True, True, False, False]), np.array([True, False, True, False])
    found = runtime.load(path, threads=1).run({"x": x, "y": y, "p": p, "q": q})
    np.testing.assert_array_equal(found["alike"], p == q)
    for name, compare in compared.items():
        np.testing.assert_array_equal(found[name], ~compare(x, y), err_msg=name)


class Rearranged(nn.Module):
    """What is something else of real numbers than of floats, and what has no order with NaN."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "rounded": (x + 12582912.0) - 12582912.0,
            "sum_less_one": (x + y) - x,
            "less_sum": y - (x + y),
            "less_itself": x * y - x * y,
            "times_zero": x * 0,
            "zero_by": 0 / x,
            "sum_times_zero": x.sum() * 0,
            "steep": functional.leaky_relu(x, 0.0),
            "number": torch.where(x == x, x, y),
            "no_number": torch.where(x != x, y, x),
            "differ": x != y,
            "ordered": torch.logical_or(x < y, y <= x),
            "unordered": torch.logical_and(~(x < y), ~(y <= x)),
            "alike": (x > 0) == (y > 0),
            "unlike": (x > 0) != (y > 0),
            "max_pool1d": functional.max_pool1d(x[0], 3, 2, 1),
            "max_pool3d": functional.max_pool3d(x[None], 2, 2, ceil_mode=True),
            "argmax": x.argmax(2),
            "argmin": x.argmin(-1, keepdim=True),
            "argmax_of_all": y.argmax(),
            "max": x.max(1).indices,
        }


def test_floats_are_not_taken_for_real_numbers(tmp_path: Path) -> None:
    model = Rearranged().eval()
    x, y = (torch.from_numpy(special((1, 3, 18, 17), share)) for share in (0.1, 0.3))
    x[0, 0, :4], x[0, 1, :4], x[0, 2, 0, :2] = -np.inf, np.inf, torch.tensor([-0.0, 0.0])
    compile(model, output=tmp_path / "m.nmc", example_inputs=(x, y))
    with runtime.load(tmp_path / "m.nmc", threads=1) as session:
        found = session.run({"x": x.numpy(), "y": y.numpy()})
    wanted = {name: value.numpy() for name, value in model(x, y).items()}
    assert [name for name, e in wanted.items() if not same(found[name], e)] == []
    assert np.isin(wanted["rounded"], np.round(x)).any()


def test_onnx_positions_signs_and_thresholds_with_what_is_no_number(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sign", ["x"], ["sign"]),
        helper.make_node("ThresholdedRelu", ["x"], ["threshold"], alpha=0.5),
        helper.make_node("HardSigmoid", ["x"], ["level"], alpha=0.0),
        helper.make_node("ArgMax", ["x"], ["first"], axis=1, keepdims=0),
        helper.make_node("ArgMin", ["x"], ["last"], axis=1, keepdims=0, select_last_index=1),
    ]
    value = helper.make_tensor_value_info
    x = special((9, 8))
    outputs = [value(name, TensorProto.FLOAT, None) for name in ("sign", "threshold", "level")]
    outputs += [value(name, TensorProto.INT64, None) for name in ("first", "last")]
    graph = helper.make_graph(nodes, "g", [value("x", TensorProto.FLOAT, x.shape)], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    compile(model, output=tmp_path / "m.nmc")
    found = runtime.load(tmp_path / "m.nmc", threads=1).run(x)
    with np.errstate(invalid="ignore"):
        assert np.array_equal(found["sign"], np.sign(x), equal_nan=True)
    assert np.array_equal(found["threshold"], np.where(x > 0.5, x, 0))
    assert np.array_equal(found["level"], np.where(np.isfinite(x), 0.5, np.nan), equal_nan=True)
    assert np.array_equal(found["first"], np.argmax(x, 1))
    assert np.array_equal(found["last"], 7 - np.argmin(x[:, ::-1], 1))
