"""Functions that are computed by arithmetic, over all of float32, against numpy in float64."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import nmcompile as nmc
from nmcompile import runtime

Floats = npt.NDArray[np.float64]


def numbers() -> npt.NDArray[np.float32]:
    """Of every binade, and densely where the functions change."""
    powers = np.float32(2.0) ** np.arange(-126, 128, dtype=np.float32)
    scaled = powers[:, None] * np.linspace(1, 2, 24, endpoint=False, dtype=np.float32)
    dense = np.linspace(0, 120, 100_000, dtype=np.float32)
    positive = np.concatenate([scaled.reshape(-1), dense])
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], np.float32)
    return np.concatenate([positive, -positive, special])


def run(nodes: list[Any], x: npt.NDArray[np.float32], path: Path) -> Floats:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(x.shape)) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    for exponent in (2, 3, 4):
        value = np.array(exponent, np.float32)
        graph.initializer.append(numpy_helper.from_array(value, f"e{exponent}"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    nmc.compile(model, output=path)
    (y,) = runtime.load(path).run({"x": x}).values()
    return np.asarray(y, np.float64)


def sigmoid(x: Floats) -> Floats:
    result: Floats = 1 / (1 + np.exp(-x))
    return result


def erf(x: Floats) -> Floats:
    return np.array([math.erf(value) for value in x])


def silu(x: Floats) -> Floats:
    return x * sigmoid(x)


# The largest error relative to the value; beside that one of so much of 1.
FUNCTIONS: dict[str, tuple[Callable[[Floats], Floats], float, float]] = {
    "Exp": (np.exp, 1e-7, 0.0),
    "Tanh": (np.tanh, 3e-7, 0.0),
    "Sigmoid": (sigmoid, 2e-7, 0.0),
    "Erf": (erf, 1.5e-6, 3e-7),
    "Silu": (silu, 3e-7, 1e-36),  # where the sigmoid is subnormal
}
NODES = {name: [helper.make_node(name, ["x"], ["y"])] for name in FUNCTIONS if name != "Silu"} | {
    "Silu": [
        helper.make_node("Sigmoid", ["x"], ["gate"]),
        helper.make_node("Mul", ["x", "gate"], ["y"]),
    ]
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_exact_enough_everywhere(name: str, tmp_path: Path) -> None:
    x = numbers()
    found = run(NODES[name], x, tmp_path / "m.nmc")
    function, relative, absolute = FUNCTIONS[name]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        wanted = function(x.astype(np.float64))
        rounded = wanted.astype(np.float32)
    assert (np.isnan(found) == np.isnan(wanted)).all()
    infinite = np.isinf(rounded)
    assert (found[infinite] == rounded[infinite]).all()
    smallest = float(np.finfo(np.float32).tiny)
    normal = np.isfinite(rounded) & (np.abs(wanted) >= smallest)
    bound = relative * np.abs(wanted) + absolute
    assert (np.abs(found[normal] - wanted[normal]) <= bound[normal]).all()
    tiny = np.isfinite(rounded) & (np.abs(wanted) < smallest)
    assert (np.abs(found[tiny]) <= 2 * smallest).all()


@pytest.mark.parametrize("exponent", [2, 3, 4])
def test_small_powers_are_products(exponent: int, tmp_path: Path) -> None:
    x = numbers()
    found = run([helper.make_node("Pow", ["x", f"e{exponent}"], ["y"])], x, tmp_path / "m.nmc")
    with np.errstate(over="ignore", under="ignore"):
        wanted = (x.astype(np.float64) ** exponent).astype(np.float32)
    np.testing.assert_allclose(found, wanted, rtol=3e-7, atol=1e-44)


def test_a_function_of_functions_is_computed_once_for_each_number(tmp_path: Path) -> None:
    """Written out, each would double what is inside."""
    names = [f"t{number}" for number in range(12)]
    nodes = [
        helper.make_node(("Tanh", "Exp")[number % 2], [before], [after])
        for number, (before, after) in enumerate(zip(["x", *names], [*names, "y"], strict=True))
    ]
    x = np.linspace(-4, 4, 1000, dtype=np.float32)
    found = run(nodes, x, tmp_path / "m.nmc")
    wanted = x.astype(np.float64)
    for number in range(len(nodes)):
        wanted = (np.tanh, np.exp)[number % 2](wanted)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
