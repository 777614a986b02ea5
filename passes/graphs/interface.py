"""The small graph interface that the passes are written against, once for every framework.

A pass sees operators of a few canonical kinds and opaque values; `fx_graph` and `onnx_graph`
translate both ways. Only what the passes and the inspection need is here.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from nmcompile.passes.graphs.flow import OPAQUE, Flow, Uniform
from nmcompile.passes.graphs.quantised import QuantisedConstant

Array = npt.NDArray[Any]

Value = Hashable
"""A tensor of the graph, opaque to the passes: compare and hash it, ask the graph about it."""

OpKind = Literal["conv", "linear", "batch_norm", "layer_norm", "add", "identity", "other"]


@dataclass(frozen=True)
class ConvAttrs:
    """Geometry of a two-dimensional convolution, in elements of the image.

    `padding` is (top, left, bottom, right); everything else is (vertical, horizontal).
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Affine:
    """Scale and shift of each channel, both float64 (C,).

    An inference-mode batch norm is y[:, c] = scale[c] * x[:, c] + shift[c].
    """

    scale: Array
    shift: Array


@dataclass(frozen=True)
class Parameter:
    """A constant of one number or slice per channel.

    Channels are axis 1, of "linear" the last axis.

    output, input: the axes along which it follows the channels of the operator's output and of its
    first input; None where it does not. A batch norm's follow the output, which is to follow the
    input.
    """

    value: Value
    output: int | None
    input: int | None = None


@dataclass(frozen=True, eq=False)
class Op:
    """One operator at the time of asking; a change of the graph makes it stale.

    Attributes:
        kind: "conv" and "linear" have constant weights, "batch_norm" constant statistics,
            "layer_norm" normalises the last axis, as an RMS norm may, and has a constant scale,
            "add" is the plain elementwise sum of two or more tensors, "identity" hands its input
            on.
        name: what a user recognises (module path or node name); unique for conv and linear.
        where: operator type and native node name, for messages.
        inputs: the activations read; for "other" everything read.
        output: the (first) tensor written.
        others: further tensors written, where `flow` speaks of them.
        handle: the native node, for the adapter that made it.
        weight: conv (O, I/groups, kh, kw); linear, however it is stored, is read as (O, I).
        bias: (O,), or None.
        integers: what the weight is stored as, if as integers; along the same axes.
        conv: geometry, for "conv" only.
        affine: scale and shift, for "batch_norm", and behind the normalisation of "layer_norm".
        flow: what is known about the elements of its output.
        uniform: what is known of channels that hold one number, where `flow` is by channel.
        product: whether it multiplies its inputs, for "elementwise".
        parameters: of "conv", "linear", "batch_norm" and pointwise operators, the constants that
            have a place for each channel.
    """

    kind: OpKind
    name: str
    where: str
    inputs: tuple[Value, ...]
    output: Value
    handle: Any
    weight: Array | None = None
    bias: Array | None = None
    integers: QuantisedConstant | None = None
    conv: ConvAttrs | None = None
    affine: Affine | None = None
    flow: Flow = OPAQUE
    parameters: tuple[Parameter, ...] = ()
    uniform: Uniform = "unknown"
    product: bool = False
    others: tuple[Value, ...] = ()

    @property
    def groups(self) -> int:
        """Of a convolution; 1 for everything else."""
        return self.conv.groups if self.conv is not None else 1

    @property
    def padded(self) -> bool:
        """Whether a convolution reads zeros around its image."""
        return self.conv is not None and any(self.conv.padding)


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution or matrix product with constant weights, for inspection and lowering.

    `weight` is OIHW for "conv2d" and (O, I) for "linear" and "recurrent", and `integers` what it is
    stored as, if as integers; `padding` is (top, left, bottom, right); shapes are None where the
    graph does not know them; `macs` counts the multiply-accumulates of the dense layer.
    """

    name: str
    op: Literal["conv2d", "linear", "recurrent"]
    weight: Array
    bias: Array | None
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None
    macs: int | None
    integers: QuantisedConstant | None = None


@dataclass(frozen=True, eq=False)
class Weighted:
    """An operator with constant weights, but no `Layer`: passes edit no more than its weight.

    `weight` is (O, I, ...) as for layers, integers less their zero point; None where it cannot be
    read, and `reason` says why. `op` is "conv1d", "conv3d", "conv_transpose2d", ... `pieces` are
    the convolutions, under the same name, that are computed in its place; none where no kernel is
    for it. `handle` is the native node, for the adapter that made it; None where its weight cannot
    be set.
    """

    name: str
    op: str
    weight: Array | None
    reason: str
    groups: int = 1
    macs: int | None = None
    pieces: tuple[Layer, ...] = ()
    handle: Any = None

    def called(self, name: str) -> "Weighted":
        """The same under another name."""
        pieces = tuple(replace(piece, name=name) for piece in self.pieces)
        return replace(self, name=name, pieces=pieces)


@dataclass(frozen=True)
class Note:
    """What a pass has to tell the user about one layer.

    `left` marks a refusal: the layer (or batch norm) of that name stays as it is, and why.
    """

    layer: str
    text: str
    left: bool = False


class Graph(ABC):
    """A model that passes can read and edit in place."""

    kind: Literal["torch", "onnx"]

    @abstractmethod
    def native(self) -> Any:
        """The model as its framework runs it (`torch.fx.GraphModule` or `onnx.ModelProto`)."""

    @abstractmethod
    def copy(self) -> Self:
        """An independent graph; edits of either leave the other alone."""

    @abstractmethod
    def ops(self) -> list[Op]:
        """All operators in topological order; constants are values, not operators."""

    @abstractmethod
    def outputs(self) -> Sequence[Value]:
        """The tensors that the model returns."""

    @abstractmethod
    def constant(self, value: Value) -> Array | None:
        """The contents of a constant, or None for anything computed from inputs."""

    @abstractmethod
    def integers(self, value: Value) -> QuantisedConstant | None:
        """What a constant is stored as, if as integers; `constant` gives what they stand for."""

    @abstractmethod
    def named_constants(self) -> Iterator[tuple[str, Array]]:
        """Every constant that is stored under a name."""

    @abstractmethod
    def shape(self, value: Value) -> tuple[int, ...] | None:
        """The shape where every dimension is known."""

    @abstractmethod
    def dtype(self, value: Value) -> str | None:
        """The numpy name of the element type ("float32", "bfloat16"), where it is known."""

    @abstractmethod
    def uses(self, value: Value) -> int:
        """How many operator inputs and graph outputs read the value."""

    @abstractmethod
    def replace(self, old: Value, new: Value) -> None:
        """Make everything that reads `old` read `new`; dead operators stay until `sweep`."""

    @abstractmethod
    def drop_operand(self, op: Op, index: int) -> None:
        """Take one operand out of an "add"; with a single one left the sum is that operand."""

    @abstractmethod
    def set_weight(self, op: Op, weight: Array, bias: Array | None) -> None:
        """Give a conv or linear new constants (shapes as in `Op`), in its weight's dtype.

        A constant that other operators read too is left alone: the operator gets its own. Integers
        stay integers where they can stand for the weight.
        """

    @abstractmethod
    def drop_affine(self, op: Op) -> None:
        """Let a layer norm normalise only: without scale and shift, or with neutral ones."""

    @abstractmethod
    def set_other_weight(self, other: Weighted, weight: Array) -> None:
        """Give an operator that has a handle a new weight, of the shape in `Weighted`."""

    @abstractmethod
    def stored_name(self, constant: Value) -> str:
        """The name under which the contents of a constant are stored."""

    @abstractmethod
    def readers(self, constant: Value) -> int:
        """How many operator inputs and graph outputs read a constant, under whatever name."""

    @abstractmethod
    def reorder(self, constant: Value, axis: int, order: Array) -> None:
        """Slice i of the constant along `axis` becomes its former slice order[i]; keeps its name.

        Slices that the order leaves out are gone. Everything that reads the constant sees the
        change; tensors of the user's model do not.
        """

    @abstractmethod
    def resize(self, op: Op, shape: tuple[int, ...]) -> None:
        """Let an operator write a tensor of another shape, as what it reads has changed.

        Arguments that repeat the shape (a reshape's target, the groups of a depthwise convolution)
        follow; `shape` is static, of the rank that it was.
        """

    @abstractmethod
    def evaluate(self, op: Op, inputs: Mapping[Value, Array]) -> Array | None:
        """What an operator makes of other inputs, constants as they are; None where it cannot run.

        Args:
            op: without subgraphs.
            inputs: what stands for the tensors that are not constant; cast to their dtypes.
        """

    @abstractmethod
    def fold_constants(self) -> list[str]:
        """Compute every operator that depends on constants only, random ones excepted.

        Returns the names of the operators that are gone.
        """

    @abstractmethod
    def settle_products(self) -> list[str]:
        """Bring products with constants to forms that are layers: without factors, or convolutions.

        Returns the names of the operators concerned.
        """

    @abstractmethod
    def sweep(self) -> int:
        """Erase what nothing reads; returns the number of operators erased."""

    @abstractmethod
    def check(self) -> None:
        """Raise AssertionError with a reason when an invariant of the framework is broken."""

    @abstractmethod
    def weighted(self) -> list[Weighted]:
        """What has constant weights beside the layers, in topological order."""

    def stored_weights(self) -> dict[str, Array]:
        """What is stored as the weight of each module, by its path: unmasked before folding."""
        named = ((weight_owner(name), array) for name, array in self.named_constants())
        return {owner: array for owner, array in named if owner}

    def layers(self) -> list[Layer]:
        """Every convolution and constant-weight matrix product, in topological order."""
        return [_layer(self, op) for op in self.ops() if op.kind in ("conv", "linear")]

    def computed(self) -> list[Layer]:
        """The layers, and behind them those that are computed in place of `weighted` operators."""
        return [*self.layers(), *(piece for other in self.weighted() for piece in other.pieces)]


class Pass(Protocol):
    """One transformation: one file, one class, legal cases numbered in its docstring."""

    @property
    def name(self) -> str:
        """The name in messages and in `--json` output."""

    def call(self, graph: Graph) -> "PassResult":
        """Edit the graph in place and say what happened."""


@dataclass(frozen=True)
class PassResult:
    """The edited graph, whether anything changed, and what to tell the user."""

    graph: Graph
    modified: bool
    notes: tuple[Note, ...] = ()


def _layer(graph: Graph, op: Op) -> Layer:
    assert op.weight is not None
    attrs = op.conv or ConvAttrs()
    output_shape = graph.shape(op.output)
    macs = None
    if output_shape is not None:
        # Per output element: one product for every weight of its output channel.
        macs = int(np.prod(output_shape, dtype=np.int64)) * int(np.prod(op.weight.shape[1:]))
    return Layer(
        name=op.name,
        op="conv2d" if op.kind == "conv" else "linear",
        weight=op.weight,
        bias=op.bias,
        stride=attrs.stride,
        padding=attrs.padding,
        dilation=attrs.dilation,
        groups=attrs.groups,
        input_shape=graph.shape(op.inputs[0]),
        output_shape=output_shape,
        macs=macs,
        integers=op.integers,
    )


PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""What torch calls the weights of an `nn.MultiheadAttention` that are in no module of their own."""

_PARAMETRIZED = ("original", "original0", "original1")


def weight_owner(parameter: str) -> str:
    """The layer that a weight is of, from the parameter's name; "" if it is none.

    `a.weight`, `a.weight_orig` (torch.nn.utils.prune) and `a.parametrizations.weight.original` are
    all weights of `a`; `a.in_proj_weight` of an attention is that of `a.in_proj`.
    """
    path, _, leaf = parameter.rpartition(".")
    if leaf in _PARAMETRIZED:
        path, _, tensor = path.rpartition(".")
        owner, _, last = path.rpartition(".")
        path, leaf = (owner, tensor) if last == "parametrizations" else (path, "")
    leaf = leaf.removesuffix("_orig")
    if leaf in PROJECTIONS:
        name = leaf.removesuffix("_weight")
        return f"{path}.{name}" if path else name
    return path if leaf in ("weight", "weight_v") else ""


def unique_name(wanted: str, taken: set[str]) -> str:
    """`wanted`, or `wanted_1`, `wanted_2`, ... when taken; the result is added to `taken`."""
    name, count = wanted, 0
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    taken.add(name)
    return name
