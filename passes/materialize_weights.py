"""Turn whatever depends on parameters only into constants."""

from nmcompile.passes.graphs.interface import Graph, Note, PassResult, Value


class MaterializeWeights:
    """Evaluate training-time weight computations once and for all.

    Legal cases:

    1. An operator whose inputs are all constants (parameters, buffers, results of factory
       operators, shapes that are known) is computed now. This covers masks, custom autograd
       functions, `torch.nn.utils.prune`, parametrizations, and the chains that ONNX exporters make
       of them. Random operators and operators with subgraphs stay.
    2. An operator that hands its input on (identity, clone, dropout at inference) is bypassed,
       unless it makes an output of the model.
    3. A product with a constant whose form hides the weight gets another: factors (alpha and beta
       of ONNX's Gemm and torch's addmm) are multiplied into the constants, a transposed input is
       transposed in front, and W x, with the constant on the left, is a 1x1 convolution.
    """

    name = "materialize_weights"

    def call(self, graph: Graph) -> PassResult:
        """Run on `graph` in place; notes name the layers whose weights became constants."""
        before = {layer.name for layer in graph.layers()}
        gone = graph.fold_constants()  # case 1
        outputs = set(graph.outputs())
        sources: dict[Value, Value] = {}  # of what is bypassed
        for op in graph.ops():  # case 2
            if op.kind == "identity" and op.output not in outputs and graph.uses(op.output):
                sources[op.output] = sources.get(op.inputs[0], op.inputs[0])
                graph.replace(op.output, sources[op.output])
        settled = graph.settle_products()  # case 3
        graph.sweep()
        notes = tuple(
            Note(layer.name, "its weight was computed from parameters only and is now a constant")
            for layer in graph.layers()
            if layer.name not in before
        )
        return PassResult(graph, bool(gone) or bool(sources) or bool(settled), notes)
