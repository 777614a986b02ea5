"""The branch of an If that is taken, in place of the If."""

from collections.abc import Callable

import onnx_ir as ir

from nmcompile.passes.graphs.interface import Array, unique_name


def inline_branch(
    graph: ir.Graph, node: ir.Node, taken: bool, names: set[str], constant: Callable[..., ir.Value]
) -> list[ir.Value]:
    """Move the nodes of one branch in front of the If that holds it.

    Args:
        graph: what the If is in.
        node: the If.
        taken: its condition.
        names: of all values of the graph; those of the branch are added.
        constant: makes an initializer of the graph, from a name and an array.

    Returns:
        What the If's outputs are then, in their order; readers are not rewired.
    """
    branch = node.attributes["then_branch" if taken else "else_branch"].as_graph()
    for value in list(branch.initializers.values()):
        array: Array = value.const_value.numpy()  # type: ignore[union-attr]
        moved = constant(str(value.name), array)
        names.add(str(moved.name))
        value.replace_all_uses_with(moved, replace_graph_outputs=True)
    results = list(branch.outputs)
    branch.outputs.clear()
    nodes = list(branch)
    branch.remove(nodes)
    for inner in nodes:
        for value in inner.outputs:
            if value.name:
                value.name = unique_name(value.name, names)
                names.add(value.name)
    graph.insert_before(node, nodes)
    return results
