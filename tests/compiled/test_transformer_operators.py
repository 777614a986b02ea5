"""Operators of transformers, ONNX's and onnxruntime's: in our kernels, as onnxruntime has them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import nmcompile as nmc
from nmcompile import runtime
from nmcompile.frontends import open_model
from nmcompile.passes.graphs.onnx.graph import OnnxGraph
from nmcompile.passes.operators.onnx.refusals import refusals

Array = npt.NDArray[Any]
RANDOM = np.random.default_rng(0)
BATCH, HEADS, SHARED, TOKENS, KEYS, SIZE = 2, 4, 2, 5, 7, 8
WIDTH = HEADS * SIZE
MICROSOFT = "com.microsoft"


def floats(*shape: int) -> Array:
    return RANDOM.standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True)
class Node:
    """One operator on tensors of its own: inputs, or constants; "" and None where one is left out.

    outputs: which of them are read.
    """

    operator: str
    given: Sequence[Array | None]
    constants: Sequence[Array | None] = ()
    outputs: Sequence[bool] = (True,)
    attributes: dict[str, Any] = field(default_factory=dict)
    domain: str = ""


def model_of(nodes: Sequence[Node], opset: int) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """All of them side by side, and what they are given."""
    made, inputs, outputs, constants = [], dict[str, Array](), list[str](), dict[str, Array]()
    for place, node in enumerate(nodes):
        names = list[str]()
        for where, arrays in ((inputs, node.given), (constants, node.constants)):
            for array in arrays:
                names.append("" if array is None else f"x{place}_{len(names)}")
                if array is not None:
                    where[names[-1]] = array
        results = [f"y{place}_{i}" if read else "" for i, read in enumerate(node.outputs)]
        outputs += [name for name in results if name]
        made.append(
            helper.make_node(
                node.operator, names, results, f"node{place}", domain=node.domain,
                **node.attributes,
            )
        )  # fmt: skip
    graph = helper.make_graph(
        made, "g",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in inputs.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    sets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=sets, ir_version=10), inputs


def queries(keys: int = KEYS, shared: int = HEADS) -> list[Array | None]:
    return [
        floats(BATCH, heads, count, SIZE)
        for heads, count in ((HEADS, TOKENS), (shared, keys), (shared, keys))
    ]


def joined(keys: int = KEYS, shared: int = HEADS) -> list[Array | None]:
    return [
        floats(BATCH, count, heads * SIZE)
        for heads, count in ((HEADS, TOKENS), (shared, keys), (shared, keys))
    ]


PAST = (floats(BATCH, HEADS, 3, SIZE), floats(BATCH, HEADS, 3, SIZE))
ALL = (True, True, True)
SEEN = RANDOM.random((BATCH, 1, TOKENS, KEYS)) < 0.6
SEEN[:, :, :, 0] = True
ATTENTIONS = [
    Node("Attention", queries()),
    Node("Attention", queries(TOKENS), attributes={"is_causal": 1}),
    Node("Attention", queries(shared=SHARED), attributes={"scale": 0.3}),
    Node("Attention", joined(), attributes={"q_num_heads": HEADS, "kv_num_heads": HEADS}),
    Node("Attention", joined(shared=SHARED),
         attributes={"q_num_heads": HEADS, "kv_num_heads": SHARED}),
    Node("Attention", [*queries(), floats(TOKENS, KEYS)]),
    Node("Attention", [*queries(), SEEN]),
    Node("Attention", [*queries(), None, *PAST], outputs=ALL),
]  # fmt: skip
COS, SIN = floats(20, SIZE // 2), floats(20, SIZE // 2)
PLACES = RANDOM.integers(0, 20, (BATCH, TOKENS))
OTHERS = [
    Node("Attention", queries(), attributes={"softcap": 2.0}),
    Node("Attention", queries(), outputs=(True, False, False, True)),
    Node("RMSNormalization", [floats(3, WIDTH)], [floats(WIDTH)]),
    Node("RotaryEmbedding", [floats(BATCH, HEADS, TOKENS, SIZE)], [COS, SIN, PLACES]),
    Node("RotaryEmbedding", [floats(BATCH, TOKENS, WIDTH)], [COS[:, :2], SIN[:, :2], PLACES],
         attributes={"num_heads": HEADS, "rotary_embedding_dim": 4}),
    Node("RotaryEmbedding", [floats(BATCH, HEADS, TOKENS, SIZE)], [COS, SIN, PLACES],
         attributes={"interleaved": 1}),
]  # fmt: skip
PADDING = np.array([[1, 1, 0, 0, 1, 1, 1, 0, 1, 1], [1] * 10], np.int32)


def theirs(
    operator: str, given: Sequence[Array | None], constants: Sequence[Array | None] = (),
    outputs: Sequence[bool] = (True,), **attributes: Any,
) -> Node:  # fmt: skip
    return Node(operator, given, constants, outputs, attributes, MICROSOFT)


ROWS = floats(BATCH, TOKENS, WIDTH)
CONTRIBUTED = [
    theirs("MultiHeadAttention", joined(), num_heads=HEADS),
    theirs(
        "MultiHeadAttention",
        [*joined(), floats(3 * WIDTH), PADDING, floats(1, HEADS, TOKENS, KEYS + 3), *PAST],
        outputs=ALL, num_heads=HEADS, scale=0.25,
    ),
    theirs("MultiHeadAttention", [joined()[0], *queries()[1:]], num_heads=HEADS),
    theirs(
        "Attention", [ROWS], [floats(WIDTH, 3 * WIDTH), floats(3 * WIDTH)], num_heads=HEADS
    ),
    theirs("SkipLayerNormalization", [ROWS, floats(BATCH, TOKENS, WIDTH)],
           [floats(WIDTH), floats(WIDTH), floats(WIDTH)], (True, False, False, True)),
    theirs("SkipSimplifiedLayerNormalization", [ROWS, floats(BATCH, TOKENS, WIDTH)],
           [floats(WIDTH)], epsilon=1e-5),
    Node("SimplifiedLayerNormalization", [ROWS], [floats(WIDTH)], (True,),
         {"epsilon": 1e-5, "axis": -1}),
    theirs("BiasGelu", [ROWS], [floats(WIDTH)]),
    theirs("FastGelu", [ROWS], [floats(WIDTH)]),
    theirs("Gelu", [ROWS]),
    theirs("QuickGelu", [ROWS], alpha=1.5),
    theirs("RotaryEmbedding", [ROWS], [PLACES, COS, SIN]),
    theirs("RotaryEmbedding", [floats(BATCH, HEADS, TOKENS, SIZE)], [PLACES, COS, SIN]),
]  # fmt: skip

# Nodes, operator set, and how many attentions run in one kernel each.
MODELS = {
    "attention 23": (ATTENTIONS, 23, len(ATTENTIONS)),
    "others 23": (OTHERS, 23, 0),
    "onnxruntime's": (CONTRIBUTED, 17, 4),
}


@pytest.mark.parametrize("name", MODELS)
def test_operators_agree_with_onnxruntime(name: str, tmp_path: Path) -> None:
    nodes, opset, attentions = MODELS[name]
    model, feeds = model_of(nodes, opset)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    onnx.save(model, tmp_path / "m.onnx")
    result = nmc.compile(tmp_path / "m.onnx", output=tmp_path / "m.nmc")
    assert not result.report.segments
    with runtime.load(tmp_path / "m.nmc", threads=1) as session:
        found = session.run(feeds)
        symbols = [call.symbol for call in session.profile(feeds, repeats=1)]
    assert sum(symbol.startswith("attention_") for symbol in symbols) == attentions
    for value, wanted in zip(model.graph.output, expected, strict=True):
        np.testing.assert_allclose(
            found[value.name], wanted, rtol=1e-4, atol=2e-5, err_msg=value.name
        )


REFUSED = {
    "qk": theirs("MultiHeadAttention", joined(), outputs=(True, False, False, True), num_heads=4),
    "unidirectional": theirs("MultiHeadAttention", joined(), num_heads=HEADS, unidirectional=1),
    "its mask": theirs(
        "MultiHeadAttention", [*joined(), None, np.array([3, 4], np.int32)], num_heads=HEADS
    ),
    "do_rotary": theirs("Attention", [ROWS], [floats(WIDTH, 3 * WIDTH)], num_heads=4, do_rotary=1),
    "interleaved": theirs("RotaryEmbedding", [ROWS], [PLACES, COS, SIN], interleaved=1),
    "found one that is not there": theirs(
        "GroupQueryAttention",
        [*joined(TOKENS, SHARED), None, None, np.array([4, 4], np.int32),
         np.array(5, np.int32)],
        outputs=ALL, num_heads=HEADS, kv_num_heads=SHARED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_what_was_not_verified_is_refused_by_name(why: str, tmp_path: Path) -> None:
    model, _ = model_of([REFUSED[why]], 17)
    onnx.save(model, tmp_path / "m.onnx")
    graph = open_model(tmp_path / "m.onnx").graph
    assert isinstance(graph, OnnxGraph)
    (reason,) = refusals(graph).values()
    assert REFUSED[why].operator in reason and why in reason
