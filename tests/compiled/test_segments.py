"""Models that are not all ours: the parts together give what onnxruntime gives for the whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

import nmcompile
from nmcompile.errors import InputError, ShapeError, UnsupportedOperatorError
from tests.support.examples import examples
from tests.support.mixed_models import (
    BACKBONE,
    FLOAT,
    SHAPE,
    X,
    backbone,
    check,
    conv,
    counting,
    image,
    model,
    node,
    reader,
    runs,
    weight,
)

OURS, REST = "nmcompile", "onnxruntime"
INT64 = TensorProto.INT64
AFTER = {"v": weight(6, 16, 1, 1)}


def graph(nodes: list[onnx.NodeProto], *outputs: str, inputs: Any = ()) -> onnx.GraphProto:
    """A subgraph over float tensors."""
    made = [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs]
    return helper.make_graph(nodes, "inner", list(inputs), made)


def detector() -> onnx.ModelProto:
    nodes = [
        *backbone(),
        conv("a", "p", "head.weight"),
        node("Reshape", ["p", "flat"], ["q"]),
        node("Split", ["q", "parts"], ["raw", "logits"], axis=1),
        node("Transpose", ["raw"], ["boxes"], perm=[0, 2, 1]),
        node("Sigmoid", ["logits"], ["scores"]),
        node("NonMaxSuppression", ["boxes", "scores", "most", "iou", "score"], ["kept"]),
        node("Gather", ["kept", "last"], ["places"], axis=1),
        node("Gather", ["boxes", "places"], ["picked"], axis=1),
    ]
    weights = {
        **BACKBONE,
        "head.weight": weight(6, 16, 1, 1),
        "flat": np.array([1, 6, 256]),
        "parts": np.array([4, 2]),
        "most": np.array([10]),
        "iou": np.array([0.5], np.float32),
        "score": np.array([0.5], np.float32),
        "last": np.array(2),
    }
    return model(nodes, weights, [("kept", INT64, None), ("picked", FLOAT, None)])


def region_head() -> onnx.ModelProto:
    nodes = [
        *backbone(),
        node("RoiAlign", ["a", "rois", "batch"], ["r"], mode="max", output_height=4,
             output_width=4, sampling_ratio=1),
        node("Flatten", ["r"], ["f"]),
        node("Gemm", ["f", "fc.weight"], ["y"]),
    ]  # fmt: skip
    weights = {
        **BACKBONE,
        "rois": np.array([[0, 0, 8, 8], [1, 2, 9, 12]], np.float32),
        "batch": np.zeros(2, np.int64),
        "fc.weight": weight(256, 400),
    }
    return model(nodes, weights, [("y", FLOAT, None)])


def branching() -> onnx.ModelProto:
    """Which branch is taken depends on the image; both read what is around them."""
    choice = node(
        "If", ["above"], ["i"],
        then_branch=graph([conv("a", "t", "v")], "t"),
        else_branch=graph([node("Neg", ["a"], ["n"]), conv("n", "e", "v")], "e"),
    )  # fmt: skip
    nodes = [
        *backbone(),
        node("ReduceMax", ["x"], ["most"], keepdims=0),
        node("Greater", ["most", "limit"], ["above"]),
        choice,
    ]
    return model(nodes, {**BACKBONE, **AFTER, "limit": np.float32(2)}, [("i", FLOAT, None)])


def looping() -> onnx.ModelProto:
    """As often as an input says; the rank of what comes out is not known to ONNX."""
    body = graph(
        [
            node("Mul", ["state", "half"], ["scaled"]),
            node("Add", ["scaled", "a"], ["next"]),
            node("Identity", ["go"], ["on"]),
        ],
        "next",
        inputs=[
            helper.make_tensor_value_info("turn", INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", FLOAT, [1, 16, 16, 16]),
        ],
    )
    body.output.insert(0, helper.make_tensor_value_info("on", TensorProto.BOOL, []))
    nodes = [*backbone(), node("Loop", ["n", "", "a"], ["l"], body=body), conv("l", "y", "v")]
    weights = {**BACKBONE, **AFTER, "half": np.float32(0.5)}
    return model(nodes, weights, [("y", FLOAT, None)], [X, ("n", INT64, [])])


def sequences() -> onnx.ModelProto:
    """A sequence goes from one part of the rest to another, past one of ours."""
    nodes = [
        *backbone(),
        node("SplitToSequence", ["a"], ["s"], axis=1),
        node("SequenceAt", ["s", "one"], ["e"]),
        conv("e", "big", "deep", pads=[1] * 4),
        node("ReduceMean", ["big"], ["m"], keepdims=0),
        node("Greater", ["m", "zero"], ["positive"]),
        node("Cast", ["positive"], ["index"], to=INT64),
        node("SequenceAt", ["s", "index"], ["y"]),
    ]
    weights = {
        **BACKBONE, "one": np.array(1), "deep": weight(400, 1, 3, 3), "zero": np.float32(0),
    }  # fmt: skip
    return model(nodes, weights, [("y", FLOAT, None)])


def highest() -> onnx.ModelProto:
    nodes = [
        *backbone(),
        node("Flatten", ["a"], ["f"]),
        node("TopK", ["f", "k"], ["values", "indices"]),
    ]
    outputs = [("values", FLOAT, None), ("indices", INT64, None)]
    return model(nodes, {**BACKBONE, "k": np.array([7])}, outputs)


def doubles() -> onnx.ModelProto:
    nodes = [
        node("Cast", ["x"], ["s"], to=FLOAT),
        conv("s", "c", "w"),
        node("Cast", ["c"], ["d"], to=TensorProto.DOUBLE),
        node("Exp", ["d"], ["y"]),
    ]
    double = TensorProto.DOUBLE
    return model(nodes, BACKBONE, [("y", double, None)], [("x", double, SHAPE)])


def foreign() -> onnx.ModelProto:
    """An operator of onnxruntime's own, whose shape ONNX does not know; convolutions around it."""
    nodes = [
        *backbone(),
        node("Trilu", ["a"], ["g"], domain="com.microsoft"),
        conv("g", "y", "deep"),
    ]
    weights = {**BACKBONE, "deep": weight(400, 16, 3, 3)}
    return model(nodes, weights, [("y", FLOAT, None)], domains=["com.microsoft"])


def constants() -> onnx.ModelProto:
    """Outputs that are computed, constant, and the input itself."""
    outputs = [("a", FLOAT, None), ("k", FLOAT, [1]), ("places", INT64, None), X]
    nodes = [*backbone(), node("NonZero", ["a"], ["places"])]
    return model(nodes, {**BACKBONE, "k": np.ones(1, np.float32)}, outputs)


MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], list[str]]] = {
    "counting": (counting, [OURS, REST]),
    "reader": (reader, [OURS, REST, OURS]),
    "detector": (detector, [OURS, REST]),
    "region head": (region_head, [OURS, REST, OURS]),
    "branching": (branching, [OURS, REST]),
    "looping": (looping, [OURS, REST]),
    "sequences": (sequences, [OURS, REST, OURS, REST]),
    "highest": (highest, [OURS, REST]),
    "doubles": (doubles, [REST, OURS, REST]),
    "foreign": (foreign, [OURS, REST, OURS]),
    "constants": (constants, [OURS, REST]),
}


def feeds_of(proto: onnx.ModelProto, seed: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for value in proto.graph.input:
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        found[value.name] = np.array(3) if dtype == np.int64 else image(seed, shape).astype(dtype)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_parts_gives_what_onnxruntime_does(name: str, tmp_path: Path) -> None:
    make, expected = MODELS[name]
    proto = make()
    result = check(proto, tmp_path, feeds_of(proto))
    assert runs(result) == expected
    nodes = sum(segment.nodes for segment in result.report.segments)
    assert nodes >= len(proto.graph.node) - 1  # a constant output has a node of its own


@pytest.mark.parametrize("scale", [0.01, 10])
def test_either_branch_is_taken(scale: float, tmp_path: Path) -> None:
    check(branching(), tmp_path, {"x": image() * np.float32(scale)})


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_loop_goes_round_as_often_as_it_is_told(count: int, tmp_path: Path) -> None:
    check(looping(), tmp_path, {"x": image(), "n": np.array(count)})


def test_an_output_of_open_length_may_be_empty(tmp_path: Path) -> None:
    proto = counting()
    check(proto, tmp_path, {"x": np.zeros(SHAPE, np.float32)})
    manifest = nmcompile.runtime.read_artifact(tmp_path / "m.nmc").manifest
    assert [spec.shape for spec in manifest.outputs] == [(1, 16, 16, 16), (4, -1)]


def quantised(between: list[onnx.NodeProto]) -> onnx.ModelProto:
    """Two convolutions in integers around what is between "ad" and "cs"."""
    random_ = np.random.default_rng(3)
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"]),
        conv("xd", "c", "wd"),
        node("QuantizeLinear", ["c", "s", "z"], ["aq"]),
        node("DequantizeLinear", ["aq", "s", "z"], ["ad"]),
        *between,
        node("QuantizeLinear", ["cs", "s", "z"], ["cq"]),
        node("DequantizeLinear", ["cq", "s", "z"], ["cd"]),
        node("DequantizeLinear", ["vq", "ws", "wz"], ["vd"]),
        conv("cd", "y", "vd"),
    ]
    weights = {
        "s": np.float32(2**-4), "z": np.uint8(128), "ws": np.float32(2**-6), "wz": np.int8(0),
        "wq": random_.integers(-4, 5, (16, 8, 3, 3)).astype(np.int8),
        "vq": random_.integers(-4, 5, (400, 16, 1, 1)).astype(np.int8), "one": np.array(1),
    }  # fmt: skip
    return model(nodes, weights, [("y", FLOAT, None)])


@pytest.mark.parametrize("target", ["avx512", "avx512_vnni"])
def test_integers_go_between_the_parts_of_a_quantised_model(target: str, tmp_path: Path) -> None:
    # Steps are powers of two, so that sums are exact and every engine rounds alike.
    proto = quantised([node("CumSum", ["ad", "one"], ["cs"])])
    result = check(proto, tmp_path, target=target)
    assert runs(result) == [OURS, REST, OURS]
    manifest = nmcompile.runtime.read_artifact(tmp_path / "m.nmc").manifest
    assert [spec.dtype for spec in manifest.values] == ["uint8", "uint8"]
    kernels = [layer.kernel for layer in result.report.layers]
    assert all(("_i8_" in kernel) == (target == "avx512_vnni") for kernel in kernels), kernels


def rest_of(
    kind: str, given: list[str], result: str, weights: dict[str, Any]
) -> list[onnx.NodeProto]:
    """An operator that is onnxruntime's, on two images (1, 8, 8, 8)."""
    if kind == "cumsum":
        weights["axis"] = np.array(3)
        return [node("CumSum", [given[0], "axis"], [result])]
    if kind == "einsum":
        return [node("Einsum", given, [result], equation="nchw,ncwk->nchk")]
    weights["whole"], weights["half"] = np.array([1, 8, 1, 1]), np.float32(0.5)
    return [
        node("Mul", [given[0], "half"], [f"{result}h"]),
        node("Det", [f"{result}h"], [f"{result}d"]),
        node("Reshape", [f"{result}d", "whole"], [f"{result}r"]),
        node("Add", [f"{result}r", given[1]], [result]),
    ]


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    """A graph of convolutions and operators that are ours or not, on images (1, 8, 8, 8)."""
    values, nodes, weights = ["x"], [], dict[str, Any]()
    for index in range(draw(st.integers(2, 9))):
        data, other = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        result = f"v{index}"
        kind = draw(
            st.sampled_from(["conv", "conv", "relu", "add", "cumsum", "einsum", "det", "topk"])
        )
        if kind == "conv":
            weights[f"w{index}"] = weight(8, 8, 3, 3, seed=index)
            nodes.append(conv(data, result, f"w{index}", pads=[1] * 4))
        elif kind == "relu":
            nodes.append(node("Relu", [data], [result]))
        elif kind == "add":
            nodes.append(node("Add", [data, other], [result]))
        elif kind in ("cumsum", "einsum", "det"):
            # Of numbers within -1 and 1: of larger ones two engines' roundings grow apart.
            squashed = [f"{result}a", f"{result}b"]
            nodes += [node("Tanh", [v], [t]) for v, t in zip((data, other), squashed, strict=True)]
            nodes += rest_of(kind, squashed, result, weights)
        else:
            weights["k"] = np.array([8])
            nodes.append(node("TopK", [data, "k"], [result, f"{result}i"]))
        values.append(result)
    results = draw(st.lists(st.sampled_from(values[1:]), min_size=1, max_size=3, unique=True))
    # The last tensor depends on most of the others.
    outputs = list(dict.fromkeys([*results, values[-1]]))
    shape = (1, 8, 8, 8)
    return model(nodes, weights, [(name, FLOAT, None) for name in outputs], [("x", FLOAT, shape)])


@examples(10, 250)
@given(proto=networks(), seed=st.integers(0, 9))
def test_any_cut_gives_what_onnxruntime_does(
    tmp_path_factory: pytest.TempPathFactory, proto: onnx.ModelProto, seed: int
) -> None:
    try:
        check(proto, tmp_path_factory.mktemp("cut"), {"x": image(seed, (1, 8, 8, 8))})
    except UnsupportedOperatorError as error:
        assert "it would run wholly in onnxruntime" in str(error)


# what is refused, and how


def test_without_a_rest_an_operator_is_refused_as_before(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"NonZero \(node places\): expected an op"):
        nmcompile.compile(counting(), output=tmp_path / "m.nmc", rest="none")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_rest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rest 'torch' is unknown; expected 'onnxruntime' or"):
        nmcompile.compile(counting(), output=tmp_path / "m.nmc", rest="torch")


def test_a_model_without_a_layer_of_ours_is_refused(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("NonZero", ["r"], ["y"])]
    with pytest.raises(UnsupportedOperatorError, match=r"NonZero.*wholly in onnxruntime"):
        nmcompile.compile(model(nodes, {}, [("y", INT64, None)]), output=tmp_path / "m.nmc")


def test_what_onnxruntime_does_not_know_either_is_refused(tmp_path: Path) -> None:
    nodes = [*backbone(), node("Magic", ["a"], ["y"], name="wand", domain="com.example")]
    proto = model(nodes, BACKBONE, [("y", FLOAT, None)], domains=["com.example"])
    says = r"Magic \(node wand\).*and onnxruntime cannot run that part either"
    with pytest.raises(UnsupportedOperatorError, match=says):
        nmcompile.compile(proto, output=tmp_path / "m.nmc")


def test_an_output_of_strings_is_refused(tmp_path: Path) -> None:
    nodes = [*backbone(), node("Cast", ["a"], ["y"], to=TensorProto.STRING)]
    proto = model(nodes, BACKBONE, [("y", TensorProto.STRING, None)])
    with pytest.raises(UnsupportedOperatorError, match=r"output y: expected .*found string"):
        nmcompile.compile(proto, output=tmp_path / "m.nmc")


def test_a_gpu_takes_whole_models_only(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"NonZero \(node places\)"):
        nmcompile.inspect(counting(), target="sm_80")


def test_a_model_that_is_all_ours_has_no_segments(tmp_path: Path) -> None:
    proto = model(backbone(), BACKBONE, [("a", FLOAT, None)])
    files = []
    for rest in ("none", "onnxruntime"):
        result = nmcompile.compile(proto, output=tmp_path / "m.nmc", rest=rest)
        assert result.report.segments == ()
        files.append((tmp_path / "m.nmc").read_bytes())
    assert files[0] == files[1]
    assert nmcompile.runtime.read_artifact(tmp_path / "m.nmc").manifest.version == 2


# what is said


def test_the_report_says_who_runs_what_and_why(tmp_path: Path) -> None:
    nodes = [
        *backbone(),
        node("Cast", ["a"], ["h"], to=TensorProto.FLOAT16),
        conv("h", "g", "half.weight"),
        node("Cast", ["g"], ["y"], to=FLOAT),
    ]
    weights = {**BACKBONE, "half.weight": weight(16, 16, 1, 1).astype(np.float16)}
    proto = model(nodes, weights, [("y", FLOAT, None)])
    report = nmcompile.compile(proto, output=tmp_path / "m.nmc").report
    ours, rest = report.segments
    assert (ours.runs, dict(ours.operators), ours.reasons) == (
        OURS, {"Conv": 1, "Relu": 1, "Cast": 1}, (),
    )  # fmt: skip
    assert (rest.runs, dict(rest.operators)) == (REST, {"Conv": 1, "Cast": 1})
    assert "Conv (node conv_g): expected float32, found float16" in rest.reasons
    rows = {layer.name: (layer.kernel, layer.reason) for layer in report.layers}
    assert rows["half"] == (
        "onnxruntime",
        "runs in onnxruntime: Conv (node conv_g): expected float32, found float16",
    )
    assert rows["conv1"][0] != "onnxruntime"
    looked = nmcompile.inspect(proto)
    assert looked.segments == report.segments
    assert {layer.name: layer.kernel for layer in looked.layers} == {
        layer.name: layer.kernel for layer in report.layers
    }


def test_the_artifact_says_it_too(tmp_path: Path) -> None:
    result = nmcompile.compile(reader(), output=tmp_path / "m.nmc")
    steps = nmcompile.runtime.read_artifact(tmp_path / "m.nmc").manifest.steps
    assert [step.about for step in steps] == [s.to_dict() for s in result.report.segments]


def test_equal_models_give_equal_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        nmcompile.compile(reader(), output=tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_random_numbers_are_drawn_once_a_run(tmp_path: Path) -> None:
    nodes = [
        *backbone(),
        node("RandomNormalLike", ["a"], ["n"]),
        node("Add", ["a", "n"], ["s"]),
        conv("s", "y", "deep"),
        node("Sub", ["s", "n"], ["z"]),
    ]
    proto = model(
        nodes, {**BACKBONE, "deep": weight(400, 16, 1, 1)}, [("y", FLOAT, None), ("z", FLOAT, None)]
    )
    nmcompile.compile(proto, output=tmp_path / "m.nmc")
    with nmcompile.runtime.load(tmp_path / "m.nmc", threads=1) as session:
        found = session.run({"x": image()})
    (plain,) = nmcompile_backbone(tmp_path).values()
    np.testing.assert_allclose(found["z"], plain, atol=1e-5)


def nmcompile_backbone(folder: Path) -> dict[str, Any]:
    nmcompile.compile(model(backbone(), BACKBONE, [("a", FLOAT, None)]), output=folder / "b.nmc")
    with nmcompile.runtime.load(folder / "b.nmc", threads=1) as session:
        return dict(session.run({"x": image()}))


def test_a_size_that_overflows_is_refused(tmp_path: Path) -> None:
    proto = counting()
    proto.graph.node[0].attribute[0].ints[3] = 2**31 - 1
    with pytest.raises(ShapeError, match="cannot be counted"):
        nmcompile.compile(proto, output=tmp_path / "m.nmc")
