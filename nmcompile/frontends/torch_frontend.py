"""Torch models in: the only module that imports `torch.export`.

Whatever comes in (module, exported program, FX graph) is exported once, in inference mode, to a
functional aten graph without training-time structure; it leaves as an FX graph or a Relax module.
"""

import builtins
import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from nmcompile.errors import ModelError, ShapeError, UnsupportedOperatorError
from nmcompile.frontends.torch_conversions import conversions
from nmcompile.frontends.torch_parameters import check_parameters
from nmcompile.passes.graphs.fx.graph import FxGraph
from nmcompile.passes.graphs.fx.nodes import CONV, VIEW
from nmcompile.passes.operators.torch.settle import settle
from nmcompile.wording import spell_shapes

Examples = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one call."""

_TRAINING_BATCH_NORM = {
    torch.ops.aten._native_batch_norm_legit.default,
    torch.ops.aten._native_batch_norm_legit_functional.default,
    torch.ops.aten.native_batch_norm.default,
}


def is_torch_model(model: object) -> bool:
    """Whether `to_graph` takes the object."""
    return isinstance(model, (torch.nn.Module, ExportedProgram))


def to_graph(
    model: torch.nn.Module | ExportedProgram,
    example_inputs: Any = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> fx.GraphModule:
    """Export to a functional aten graph whose parameters are attributes.

    Shapes are fixed to those of the example inputs. Buffers that the forward pass writes to keep
    the value they have now: the graph is that of one call, the writes are dropped. The training
    flags of the user's modules are as before afterwards.

    Args:
        model: module, exported program, or FX graph (symbolically traced ones are exported too).
        example_inputs: a tensor, a tuple of positional arguments, or a mapping of keyword
            arguments. May be left out for exported programs, or where `shapes` says enough.
        shapes: float32 inputs to make up, by argument name, when there are no example inputs;
            with them, which of them have other shapes, their dtypes being as given; of
            an exported program, those of its inputs that it leaves open.

    Raises:
        ShapeError: there is nothing to take the input shapes from, or a program was exported for
            others.
        WeightError: a parameter holds no plain array of numbers.
        ModelError: export fails, or the model was exported in training mode.
    """
    args, kwargs = _examples(model, example_inputs, shapes)
    graph_module = export_graph(model, args, kwargs)
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.target in _TRAINING_BATCH_NORM:
            raise ModelError(
                f"{_title(model)} was traced in training mode: batch norm {node.name} takes its "
                "statistics from the batch; call .eval() before tracing or exporting it"
            )
        if node.target is torch.ops.aten.copy_.default and not node.users:
            graph.erase_node(node)
    graph_module.recompile()
    return graph_module


def export_graph(
    model: torch.nn.Module | ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> fx.GraphModule:
    """As `to_graph`, in whatever mode it was traced; what it writes to stands at its end.

    Args:
        model: as for `to_graph`.
        args: tensors by position.
        kwargs: tensors by argument name.

    Raises:
        WeightError: as `to_graph`.
        ModelError: export fails.
    """
    check_parameters(model, _title(model))
    try:
        with _inference(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = (
                model.module(check_guards=False) if isinstance(model, ExportedProgram) else model
            )
            program = torch.export.export(module, args, kwargs, strict=False)
            # An empty table decomposes nothing but removes in-place operators.
            program = program.run_decompositions({})
    except Exception as error:
        raise ModelError(
            f"{_title(model)} cannot be exported: torch.export says {_first_line(error)}; expected "
            "a model whose forward runs on the example inputs without data-dependent control flow"
        ) from error
    graph_module = program.module(check_guards=False)
    assert isinstance(graph_module, fx.GraphModule)
    for node in list(graph_module.graph.nodes):
        if node.target in CONV and _is_unbatched(node):
            _add_batch(graph_module.graph, node)
        elif node.target in VIEW:
            # A view needs the strides it was traced with; new weights may change them.
            node.target = torch.ops.aten.reshape.default
    graph_module.recompile()
    _set_training(dict.fromkeys(graph_module.modules(), False))
    return graph_module


def input_specs(module: fx.GraphModule) -> list[tuple[str, tuple[int, ...], str]]:
    """Name, shape and numpy dtype name of every tensor input, in order."""
    values = [(n.name, n.meta.get("val")) for n in module.graph.find_nodes(op="placeholder")]
    return [
        (name, tuple(int(dim) for dim in value.shape), str(value.dtype).removeprefix("torch."))
        for name, value in values
        if isinstance(value, torch.Tensor)
    ]


def output_names(module: fx.GraphModule) -> list[str]:
    """A name for every returned tensor: the keys of what forward returns, else output, output_1.

    What is None has none: artifacts return tensors.
    """
    returned = _returned(module)
    count = sum(value is not None for value in returned)
    spec = getattr(module.graph._codegen, "pytree_info", None)
    if spec is not None and spec.out_spec is not None:
        keys = _keys(spec.out_spec)
        if len(keys) == len(returned):
            keys = [key for key, value in zip(keys, returned, strict=True) if value is not None]
            if all(keys) and len(set(keys)) == count:
                return keys
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


def to_relax(module: fx.GraphModule) -> Any:
    """Import into Relax with every parameter a constant; returns a `tvm.IRModule`.

    `main` takes the tensors of `input_specs` in their order and returns a tuple of outputs.

    Raises:
        ModelError: the graph cannot be exported again.
        UnsupportedOperatorError: TVM has no conversion for an operator; names the nodes.
    """
    from tvm.relax.frontend.torch import from_exported_program

    module = _of_tensors(module)
    settle(FxGraph(module))
    module.recompile()
    inputs = tuple(
        torch.zeros(tuple(node.meta["val"].shape), dtype=node.meta["val"].dtype)
        for node in module.graph.find_nodes(op="placeholder")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(module, inputs, strict=False)
        except Exception as error:
            raise ModelError(
                f"the folded model cannot be exported: torch.export says {_first_line(error)}; "
                "expected a graph that runs on the example inputs: try it with `nmcompile.fold`, "
                "and report it if the original model runs"
            ) from error
        try:
            return from_exported_program(
                program, keep_params_as_input=False, custom_convert_map=conversions()
            )
        except Exception as error:
            raise _unsupported(module, error) from error


def _of_tensors(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph over tensors alone, in a flat list, which it shares the parameters with.

    Arguments that are None or numbers have been taken for constants by torch.export.

    Raises:
        ModelError: the model returns something else than tensors and None.
    """
    graph = fx.Graph()
    returned = pytree.tree_leaves(graph.graph_copy(module.graph, {}))
    for index, value in enumerate(returned):
        if value is not None and not isinstance(value, fx.Node):
            raise ModelError(
                f"output {index} of the model is {value!r}; expected a tensor: return only tensors"
            )
    graph.output(tuple(value for value in returned if value is not None))
    for node in graph.find_nodes(op="placeholder"):
        if not isinstance(node.meta.get("val"), torch.Tensor):
            graph.erase_node(node)
    return fx.GraphModule(module, graph)


def _is_unbatched(conv: fx.Node) -> bool:
    plain = conv.target in (torch.ops.aten.conv2d.default, torch.ops.aten.conv2d.padding)
    return plain and conv.meta["val"].ndim == 3


def _add_batch(graph: fx.Graph, conv: fx.Node) -> None:
    """Torch takes single images; what reads convolutions counts on a batch."""
    data, single = conv.args[0], conv.meta["val"]
    assert isinstance(data, fx.Node)
    with graph.inserting_before(conv):
        batch = graph.call_function(torch.ops.aten.unsqueeze.default, (data, 0))
    batch.meta["val"] = data.meta["val"].unsqueeze(0)
    with graph.inserting_after(conv):
        first = graph.call_function(torch.ops.aten.squeeze.dim, (conv, 0))
    conv.replace_all_uses_with(first, delete_user_cb=lambda user: user is not first)
    conv.replace_input_with(data, batch)
    first.meta["val"], conv.meta["val"] = single, single.unsqueeze(0)


def _unsupported(module: fx.GraphModule, error: Exception) -> UnsupportedOperatorError:
    text = str(error)
    guilty = [
        f"{node.target} (node {node.name})"
        for node in module.graph.nodes
        if node.op == "call_function" and node.target.__name__ in text
    ]
    return UnsupportedOperatorError(
        f"the model cannot be imported into TVM: {', '.join(guilty[:5]) or 'unknown operator'}: "
        f"{_first_line(error)}; express it with operators that TVM's torch importer knows, or "
        "leave that part out of the exported model"
    )


def _examples(
    model: object, example_inputs: Any, shapes: Mapping[str, Sequence[int]] | None
) -> Examples:
    if example_inputs is None and isinstance(model, ExportedProgram):
        if model.example_inputs is not None:
            return _of_program(model, shapes or {})
    if example_inputs is None and shapes:
        return (), {
            _argument(model, name): torch.zeros(tuple(shape)) for name, shape in shapes.items()
        }
    if example_inputs is None and isinstance(model, fx.GraphModule):
        specs = [n.meta.get("val") for n in model.graph.find_nodes(op="placeholder")]
        if all(isinstance(s, torch.Tensor) for s in specs) and specs:
            return tuple(torch.zeros(tuple(s.shape), dtype=s.dtype) for s in specs), {}
    if example_inputs is None:
        raise ShapeError(
            f"{_title(model)} does not say what its inputs look like: expected example inputs, "
            "found none; pass example_inputs=(x,) with tensors of the shape to compile for, or "
            'shapes={"x": (1, 3, 224, 224)} with the float32 inputs by argument name'
        )
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example_inputs, Mapping):
        kwargs = {str(name): _tensor(value) for name, value in example_inputs.items()}
    elif isinstance(example_inputs, (tuple, list)):
        args = tuple(_tensor(value) for value in example_inputs)
    else:
        args = (_tensor(example_inputs),)
    return _in_shapes(model, args, kwargs, shapes) if shapes else (args, kwargs)


def _in_shapes(
    model: object,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shapes: Mapping[str, Sequence[int]],
) -> Examples:
    """Example inputs, zeros of their dtypes in the shapes that are named.

    Raises:
        ShapeError: a shape is of none of them.
    """
    known: list[str] = []
    if isinstance(model, ExportedProgram):
        known = [str(name) for name in model.graph_signature.user_inputs]
    elif isinstance(model, torch.nn.Module):
        known = list(signature(model.forward).parameters)
    names = known[: len(args)]
    wanted = {_argument(model, name): tuple(shape) for name, shape in shapes.items()}
    for name in wanted:
        if name not in (*names, *kwargs):
            found = ", ".join((*names, *kwargs)) or "none"
            raise ShapeError(
                f"shapes: expected names of the example inputs, which are {found}; found {name!r}"
            )

    def shaped(name: str, value: Any) -> Any:
        if name not in wanted or not isinstance(value, torch.Tensor):
            return value
        return torch.zeros(wanted[name], dtype=value.dtype)

    behind = args[len(names) :]
    given = tuple(shaped(name, value) for name, value in zip(names, args, strict=False))
    return (*given, *behind), {name: shaped(name, value) for name, value in kwargs.items()}


def _of_program(model: ExportedProgram, shapes: Mapping[str, Sequence[int]]) -> Examples:
    """The example inputs of a program, in other shapes where it leaves these open."""
    flat, spec = pytree.tree_flatten(model.example_inputs)
    names = list(model.graph_signature.user_inputs)
    for name in shapes:
        if name not in names:
            raise ShapeError(f"shapes: the program has no input {name!r}; its inputs are {names}")
    values = {node.name: node.meta.get("val") for node in model.graph.find_nodes(op="placeholder")}
    for place, name in enumerate(names):
        example, wanted = flat[place], tuple(shapes.get(str(name), ()))
        if name not in shapes or wanted == tuple(example.shape):
            continue
        traced = tuple(values[str(name)].shape)
        fits = len(traced) == len(wanted) and all(
            isinstance(dim, torch.SymInt) or dim == size
            for dim, size in zip(traced, wanted, strict=True)
        )
        if not fits:
            raise ShapeError(
                f"shapes: the program was exported for {spell_shapes({name: traced})}, found "
                f"{spell_shapes({name: wanted})}; export it for that shape, or with dynamic_shapes"
            )
        flat[place] = torch.zeros(wanted, dtype=example.dtype)
    args, kwargs = pytree.tree_unflatten(flat, spec)
    return tuple(args), dict(kwargs)


def _argument(model: object, name: str) -> str:
    """The argument of forward that an input of the graph is.

    Graphs, and so artifacts, call it the same, but for names of Python's own (`input`), behind
    which torch.export puts a number.
    """
    known = signature(model.forward).parameters if isinstance(model, torch.nn.Module) else ()
    own = name.removesuffix("_1")
    return own if name not in known and own in known and hasattr(builtins, own) else name


def _tensor(value: Any) -> Any:
    """Anything with DLPack or a numpy interface as a tensor; the rest as it is."""
    return torch.as_tensor(value) if hasattr(value, "__array__") else value


def _returned(module: fx.GraphModule) -> list[Any]:
    return pytree.tree_leaves(module.graph.output_node().args[0])


def _keys(spec: pytree.TreeSpec) -> list[str]:
    """The mapping keys on the way to each leaf, joined by dots; "" where there are none."""
    if spec.is_leaf():
        return [""]
    context = spec.context
    if isinstance(context, tuple) and context and isinstance(context[0], list):
        context = context[0]
    children = spec.children()
    names = context if isinstance(context, list) and len(context) == len(children) else []
    keys = []
    for index, child in enumerate(children):
        for rest in _keys(child):
            step = str(names[index]) if names else ""
            keys.append(".".join(part for part in (step, rest) if part))
    return keys


@contextlib.contextmanager
def _inference(model: object) -> Iterator[None]:
    """Evaluation mode without gradients; the flag of every module is put back afterwards."""
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    before = {module: module.training for module in modules}
    # Set as attributes: exported modules refuse .eval().
    _set_training(dict.fromkeys(modules, False))
    try:
        with torch.no_grad():
            yield
    finally:
        _set_training(before)


def _set_training(flags: Mapping[torch.nn.Module, bool]) -> None:
    for module, flag in flags.items():
        module.training = flag


def _title(model: object) -> str:
    return f"torch model {type(model).__name__}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
