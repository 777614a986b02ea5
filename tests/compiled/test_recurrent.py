"""LSTM and GRU, ONNX's and torch's, in our kernels: as onnxruntime and torch have them."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import nmcompile as nmc
from nmcompile import runtime
from nmcompile.frontends import open_model
from nmcompile.passes.operators.onnx.refusals import refusals
from nmcompile.sparsity import parse_pattern, project
from tests.support.examples import examples
from tests.support.peer import peer

Array = npt.NDArray[Any]
GATES = {"LSTM": 4, "GRU": 3}


class Recurrent:
    """A model of recurrent nodes side by side, each over an input of its own."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes = list[onnx.NodeProto]()
        self.constants, self.feeds = dict[str, Array](), dict[str, Array]()
        self.outputs = list[str]()

    def floats(self, *shape: int, scale: float = 1.0) -> Array:
        return self.random.standard_normal(shape, dtype=np.float32) * np.float32(scale)

    def add(
        self, operator: str, sizes: tuple[int, int, int, int], direction: str = "forward", *,
        pattern: str = "dense", density: float = 0.15, bias: bool = True, state: str = "",
        cell: str = "", reads: tuple[bool, ...] = (True, False, False), behind: int = 1,
        **attributes: Any,
    ) -> str:  # fmt: skip
        """A node of (steps, batch, inputs, hidden); `state` and `cell` are "", fixed or given."""
        steps, batch, inputs, hidden = sizes
        directions, rows = 1 + (direction == "bidirectional"), GATES[operator] * hidden
        name = f"node{len(self.nodes)}"
        shapes = {"W": (rows, inputs), "R": (rows, hidden)}
        for part, shape in shapes.items():
            parts = [self.floats(*shape, scale=0.6 / shape[1] ** 0.5) for _ in range(directions)]
            if pattern != "dense":
                parts = [project(part, parse_pattern(pattern), density) for part in parts]
            self.constants[f"{name}.{part}"] = np.stack(parts)
        names = [f"{name}.x", f"{name}.W", f"{name}.R", f"{name}.B" if bias else "", ""]
        self.feeds[f"{name}.x"] = self.floats(steps, batch, inputs, scale=2)
        if bias:
            self.constants[f"{name}.B"] = self.floats(directions, 2 * rows)
        for part, how in (("h", state), ("c", cell)):
            names.append(f"{name}.{part}" if how else "")
            if how:
                where = self.feeds if how == "given" else self.constants
                where[names[-1]] = self.floats(directions, batch, hidden)
        if operator == "GRU":
            names.pop()
            attributes["linear_before_reset"] = behind
        reads = reads[: GATES[operator] - 1]
        made = [f"{name}.y{i}" if read else "" for i, read in enumerate(reads)]
        self.outputs += [each for each in made if each]
        while names[-1] == "" and len(names) > 5:
            names.pop()
        self.nodes.append(
            helper.make_node(
                operator, names, made, name, hidden_size=hidden, direction=direction, **attributes
            )
        )
        return name

    def proto(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "g",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
                for name, array in self.feeds.items()
            ],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self.outputs],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)

    def check(self, folder: Path, tolerance: float = 2e-5, **options: Any) -> Any:
        """Held against onnxruntime; returns what the compilation says."""
        proto = self.proto()
        result = nmc.compile(proto, output=folder / "m.nmc", **options)
        expected = peer(proto).run(None, self.feeds)
        with runtime.load(folder / "m.nmc", threads=1) as session:
            found = session.run(self.feeds)
        for name, wanted in zip(self.outputs, expected, strict=True):
            np.testing.assert_allclose(
                found[name], wanted, rtol=5 * tolerance, atol=tolerance, err_msg=name
            )
        return result


DIRECTIONS = ("forward", "reverse", "bidirectional")
GIVEN = st.sampled_from(["", "", "fixed", "given"])


@st.composite
def added(draw: st.DrawFn) -> dict[str, Any]:
    steps, batch = draw(st.integers(1, 7)), draw(st.sampled_from([1, 1, 2, 5, 9]))
    inputs, hidden = (draw(st.sampled_from([1, 5, 16, 17, 32, 40, 64])) for _ in range(2))
    reads = draw(st.tuples(*[st.booleans()] * 3).filter(lambda all_of: any(all_of[:2])))
    return {
        "operator": draw(st.sampled_from(["LSTM", "GRU"])),
        "sizes": (steps, batch, inputs, hidden),
        "direction": draw(st.sampled_from(DIRECTIONS)),
        "bias": draw(st.booleans()), "behind": draw(st.integers(0, 1)), "reads": reads,
        "state": draw(GIVEN), "cell": draw(GIVEN),
    }  # fmt: skip


@examples(2)
@given(nodes=st.lists(added(), min_size=3, max_size=3), seed=st.integers(0, 1 << 20))
def test_all_forms_agree_with_onnxruntime(
    nodes: list[dict[str, Any]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = Recurrent(seed)
    for one in nodes:
        if one["operator"] == "GRU":
            one["cell"] = ""
        model.add(**one)
    result = model.check(tmp_path_factory.mktemp("recurrent"))
    assert not result.report.segments
    assert [row.kernel for row in result.report.layers].count("recurrent_f32_dense__avx512") == 3


PATTERNS = {
    "2:4": "recurrent_f32_nm__avx512",
    "1:4": "recurrent_f32_nm__avx512",
    "4:16": "recurrent_f32_nm__avx512",
    "1x4": "recurrent_f32_one_by_n__avx512",
    "1x8": "recurrent_f32_one_by_n__avx512",
    "1x16": "recurrent_f32_one_by_n__avx512",
    "1x32": "recurrent_f32_one_by_n__avx512",
}


def test_kernels_skip_the_zeros_of_patterns(tmp_path: Path) -> None:
    model = Recurrent()
    for place, pattern in enumerate(PATTERNS):
        model.add(
            ("LSTM", "GRU")[place % 2], (4, (1, 5, 9)[place % 3], 24, 96),
            DIRECTIONS[place // 2 % 3], pattern=pattern, state="given" if place % 2 else "",
            behind=int(place < 4),
        )  # fmt: skip
    rows = {row.name: row for row in model.check(tmp_path).report.layers}
    for place, (pattern, kernel) in enumerate(PATTERNS.items()):
        row = rows[f"node{place}.R"]
        assert (row.pattern, row.kernel, row.sparse) == (pattern, kernel, True)
        assert rows[f"node{place}.W"].pattern == pattern


def test_zeros_that_are_multiplied_have_a_reason() -> None:
    model = Recurrent()
    model.add("LSTM", (4, 1, 24, 96), pattern="1x4", density=0.5)
    model.add("LSTM", (4, 1, 24, 96), pattern="unstructured", density=0.5)
    model.add("LSTM", (4, 1, 24, 24), pattern="1x16", density=0.5)
    rows = [row for row in nmc.inspect(model.proto()).layers if row.name.endswith("R")]
    assert [row.kernel for row in rows] == ["recurrent_f32_dense__avx512"] * 3
    for row, reason in zip(
        rows,
        (
            "with 1x4 each that is left takes 2.3 times as long, and 50% are left",
            "N:M and 1xN, not in unstructured",
            "within one gate, and 24 is no multiple of 16",
        ),
        strict=True,
    ):
        assert reason in row.reason


class Output(nn.Module):
    """The first output of a module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner(x)[0]
        return y


class Torch(nn.Module):
    """Two layers in both directions, and one that begins with what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.LSTM(12, 20, num_layers=2, bidirectional=True)
        self.single = nn.GRU(40, 16, batch_first=True)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y, (_, cells) = self.both(x)
        z, last = self.single(y.transpose(0, 1), h)
        return z, last, cells


def test_modules_of_torch_agree_with_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = Torch().eval(), (torch.randn(6, 3, 12), torch.randn(1, 3, 16))
    result = nmc.compile(model, output=tmp_path / "m.nmc", example_inputs=inputs)
    assert not result.report.segments
    assert len(result.report.layers) == 6
    wild = inputs[0].clone()
    wild[4, 1, 3] = torch.nan  # which goes back from there in the reverse direction
    wild[1, 0, 1], wild[2, 0, 2] = torch.inf, -torch.inf
    with runtime.load(tmp_path / "m.nmc", threads=1) as session, torch.no_grad():
        for x in (inputs[0], wild):
            found = session.run({"x": x.numpy(), "h": inputs[1].numpy()})
            for made, wanted in zip(found.values(), model(x, inputs[1]), strict=True):
                np.testing.assert_allclose(made, wanted.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.isa("avx512_bf16", native=True)
def test_layers_in_bfloat16_stand_beside_the_steps(tmp_path: Path) -> None:
    model = Recurrent()
    model.add("LSTM", (3, 2, 8, 16))
    options = {"target": "avx512_bf16", "precision": "bf16"}
    result = model.check(tmp_path, tolerance=0.03, **options)
    kernels = [row.kernel for row in result.report.layers]
    assert kernels == ["linear_bf16_dense__avx512_bf16", "recurrent_f32_dense__avx512"]


def test_batches_run_in_parts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = nn.GRU(8, 16, batch_first=True).eval(), tmp_path / "m.nmc"
    first = Output(model)
    shapes = [{"x": (batch, 3, 8)} for batch in (1, 4)]
    nmc.compile(first, output=path, shapes=shapes)
    x = torch.randn(6, 3, 8)
    with runtime.load(path, threads=1) as session, torch.no_grad():
        (found,) = session.run({"x": x.numpy()}).values()
        np.testing.assert_allclose(found, first(x).numpy(), rtol=1e-4, atol=1e-5)


def test_weights_are_projected_under_their_names() -> None:
    model = Recurrent()
    model.add("LSTM", (4, 1, 32, 32), "bidirectional")
    rows = nmc.inspect(nmc.enforce(model.proto(), "2:4")).layers
    assert [(row.name, row.pattern) for row in rows] == [("node0.W", "2:4"), ("node0.R", "2:4")]


REFUSED: dict[str, dict[str, Any]] = {
    "its clip is 3.0": {"clip": 3.0},
    "its input_forget is 1": {"input_forget": 1},
    "its activations are Relu, Tanh, Tanh": {"activations": ["Relu", "Tanh", "Tanh"]},
    "its layout is 1": {"layout": 1},
}


def test_what_was_not_verified_is_refused_with_its_reason() -> None:
    model, expected = Recurrent(), list(REFUSED)
    for attributes in REFUSED.values():
        model.add("LSTM", (2, 2, 4, 16), **attributes)
    name = model.add("LSTM", (2, 2, 4, 16))
    model.constants[f"{name}.lengths"] = np.array([2, 1], np.int32)
    model.nodes[-1].input[4] = f"{name}.lengths"
    expected.append("its sequences are of different lengths")
    name = model.add("LSTM", (2, 2, 4, 16), cell="fixed", state="fixed")
    model.constants[f"{name}.P"] = model.floats(1, 48)
    model.nodes[-1].input.append(f"{name}.P")
    expected.append("it has an input P")
    name = model.add("LSTM", (2, 2, 4, 16))
    model.feeds[f"{name}.R"] = model.constants.pop(f"{name}.R")
    expected.append(f"its R {name}.R is computed when the model runs")
    graph: Any = open_model(model.proto()).graph
    found = refusals(graph)
    assert len(found) == len(expected)
    for index, reason in enumerate(expected):
        assert reason in found[index]
