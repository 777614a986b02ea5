"""Fold parallel convolutions that are added up into one (SpRe, RepVGG)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nmcompile.errors import PatternError
from nmcompile.passes.graphs.interface import Array, ConvAttrs, Graph, Note, Op, PassResult, Value
from nmcompile.sparsity import NM, OneByN, Pattern, check, detect


@dataclass(frozen=True, eq=False)
class _Branch:
    """One operand of a sum: a convolution, or (without `conv`) a scaled identity."""

    name: str
    source: Value
    add: Op
    index: int
    conv: Op | None = None
    norm: Op | None = None


@dataclass(frozen=True)
class _Breach:
    """Where a sum would lose a pattern."""

    violations: int
    first: tuple[int, ...] | None


class FoldParallelBranches:
    """Merge convolutions of the same input that are summed: W = W1 + W2, b = b1 + b2.

    Sums are taken as a whole: branches of (a + shortcut) + b meet as well. Every branch must be
    read by the sum only.

    Legal cases:

    1. Two convolutions with the same input, stride, dilation and groups and the same kernel and
       padding.
    2. A smaller kernel whose taps all fall on taps of the larger one (1x1 in 3x3 with padding one
       less on each side; a 1x1 kernel may have any dilation).
    3. The input itself beside a convolution of stride 1 that keeps the number of channels: an
       identity is a 1x1 convolution.
    4. A batch norm of that same input: a 1x1 convolution with a diagonal weight.

    A pattern is never lost in silence. The main branch is the one with the larger kernel; of equal
    kernels, the one with an N:M or 1xN pattern; of two such, the one whose support contains the
    other's, else the denser one. If the main branch has a pattern, the sum must have it too. Where
    it does not, the branches stay apart and a note names the layer, the number of groups in breach
    and the first of them; `strict` raises instead.
    """

    name = "fold_parallel_branches"

    def __init__(self, *, strict: bool = False) -> None:
        """Choose between a note (default) and PatternError for a sum that breaks a pattern."""
        self.strict = strict

    def call(self, graph: Graph) -> PassResult:
        """Run on `graph` in place.

        Raises:
            PatternError: with `strict`, where folding would break a pattern.
        """
        folded: list[Note] = []
        refused: dict[frozenset[str], Note] = {}
        while True:
            note = self._fold_one(graph, refused)
            if note is None:
                return PassResult(graph, bool(folded), (*folded, *refused.values()))
            folded.append(note)
            # The layer has another weight now: what was refused for it is to be judged again.
            for key in [key for key in refused if note.layer in key]:
                del refused[key]

    def _fold_one(self, graph: Graph, refused: dict[frozenset[str], Note]) -> Note | None:
        """Fold the first pair that may be; every edit makes the operators at hand stale."""
        producers = {op.output: op for op in graph.ops()}
        for root in _roots(graph, producers):
            branches = list(_branches(graph, root, producers))
            for pair in _pairs(branches):
                key = frozenset(branch.name for branch in pair)
                if key in refused:
                    continue
                main, other = pair if _ranks_before(*pair) else pair[::-1]
                assert main.conv is not None
                place = _place(graph, main, other)
                if isinstance(place, str):
                    refused[key] = Note(main.name, f"not folded with {other.name}: {place}", True)
                    continue
                first, second = _weight(main, main), _weight(other, main)
                second = _embed(second, first.shape, place)
                total = first + second
                pattern = _structure(first)
                breach = None if pattern is None else _breach(first, total, pattern)
                if breach is not None:
                    text = (
                        f"not folded with {other.name}: the sum would break {pattern} in "
                        f"{breach.violations} groups, the first at weight index {breach.first}; "
                        "mask the branch like the main weight, or drop the pattern"
                    )
                    if self.strict:
                        raise PatternError(f"layer {main.name} {text}")
                    refused[key] = Note(main.name, text, left=True)
                    continue
                graph.drop_operand(other.add, other.index)
                graph.set_weight(main.conv, total, _add_bias(main, other))
                density = float(np.count_nonzero(total)) / total.size
                proof = f"{pattern} proven for the sum" if pattern else "no pattern to keep"
                return Note(
                    main.name, f"{other.name} folded into it; {proof}, density {density:.3f}"
                )
        return None


def _roots(graph: Graph, producers: dict[Value, Op]) -> list[Op]:
    """The sums that are not operands of another sum alone."""
    adds = [op for op in producers.values() if op.kind == "add"]
    inner = {v for op in adds for v in op.inputs if graph.uses(v) == 1}
    return [op for op in adds if op.output not in inner]


def _branches(graph: Graph, add: Op, producers: dict[Value, Op]) -> Iterator[_Branch]:
    for index, value in enumerate(add.inputs):
        op = producers.get(value)
        single = graph.uses(value) == 1
        if op is not None and single and op.kind == "add":
            yield from _branches(graph, op, producers)
        elif op is not None and single and op.kind == "conv":
            yield _Branch(op.name, op.inputs[0], add, index, conv=op)
        elif op is not None and single and op.kind == "batch_norm":
            yield _Branch(op.name, op.inputs[0], add, index, norm=op)
        if graph.constant(value) is None:
            yield _Branch("the identity", value, add, index)


def _pairs(branches: list[_Branch]) -> Iterator[tuple[_Branch, _Branch]]:
    """Branches of the same input, at least one of them a convolution."""
    for i, one in enumerate(branches):
        for two in branches[i + 1 :]:
            if one.source != two.source or (one.add is two.add and one.index == two.index):
                continue
            if one.conv is None and two.conv is None:
                continue
            yield one, two


def _ranks_before(one: _Branch, two: _Branch) -> bool:
    """Whether `one` is the main branch; it is a convolution then."""
    if one.conv is None or two.conv is None:
        return one.conv is not None
    if _kernel(one) != _kernel(two):
        return bool(np.prod(_kernel(one)) >= np.prod(_kernel(two)))
    first, second = one.conv.weight, two.conv.weight
    assert first is not None and second is not None
    structured = [_structure(weight) is not None for weight in (first, second)]
    if structured[0] != structured[1]:
        return structured[0]
    if first.shape == second.shape:
        if not np.any((first == 0) & (second != 0)):
            return True
        if not np.any((second == 0) & (first != 0)):
            return False
    return bool(np.count_nonzero(first) >= np.count_nonzero(second))


def _place(graph: Graph, main: _Branch, other: _Branch) -> tuple[int, int] | str:
    """Tap of the main kernel on which the first tap of the other falls, or why there is none."""
    assert main.conv is not None and main.conv.conv is not None
    host = main.conv.conv
    guest = other.conv.conv if other.conv is not None else ConvAttrs(groups=host.groups)
    assert guest is not None
    if host.groups != guest.groups:
        return f"its groups ({host.groups}) differ from those of the other ({guest.groups})"
    if host.stride != guest.stride:
        return f"its stride {host.stride} differs from that of the other {guest.stride}"
    shapes = [graph.shape(main.conv.output), graph.shape(other.add.inputs[other.index])]
    spans = [_span(host, _kernel(main)), _span(guest, _kernel(other))]
    if shapes[0] != shapes[1] if None not in shapes else spans[0] != spans[1]:
        return "the shapes of the two differ"
    place = []
    for axis in (0, 1):
        size, inner = _kernel(main)[axis], _kernel(other)[axis]
        step = host.dilation[axis]
        if inner > 1 and step != guest.dilation[axis]:
            return f"its dilation {host.dilation} differs from that of the other {guest.dilation}"
        offset, rest = divmod(host.padding[axis] - guest.padding[axis], step)
        if rest or not 0 <= offset <= size - inner:
            return (
                f"a kernel of {_kernel(other)} with padding {guest.padding} does not fall on the "
                f"taps of {_kernel(main)} with padding {host.padding}"
            )
        place.append(offset)
    if other.conv is None and main.conv.weight is not None:
        if main.conv.weight.shape[0] != main.conv.weight.shape[1] * host.groups:
            return "it changes the number of channels"
    return place[0], place[1]


def _span(attrs: ConvAttrs, kernel: tuple[int, int]) -> tuple[int, int]:
    """By how much the output is larger than the input at stride 1, per axis."""
    top, left, bottom, right = attrs.padding
    return (
        top + bottom - attrs.dilation[0] * (kernel[0] - 1),
        left + right - attrs.dilation[1] * (kernel[1] - 1),
    )


def _kernel(branch: _Branch) -> tuple[int, int]:
    if branch.conv is None:
        return 1, 1
    assert branch.conv.weight is not None
    return branch.conv.weight.shape[2], branch.conv.weight.shape[3]


def _weight(branch: _Branch, main: _Branch) -> Array:
    """The branch as a convolution weight in float64; identities get the channels of `main`."""
    assert main.conv is not None and main.conv.weight is not None
    if branch.conv is not None:
        assert branch.conv.weight is not None
        return branch.conv.weight.astype(np.float64)
    channels, inputs = main.conv.weight.shape[:2]
    weight = np.zeros((channels, inputs, 1, 1))
    outputs = np.arange(channels)
    affine = branch.norm.affine if branch.norm is not None else None
    # Output o reads input o, which is number o % inputs of its group.
    weight[outputs, outputs % inputs, 0, 0] = 1.0 if affine is None else affine.scale
    return weight


def _embed(weight: Array, shape: tuple[int, ...], place: tuple[int, int]) -> Array:
    """Put a kernel into a larger one of zeros."""
    result = np.zeros(shape)
    top, left = place
    result[:, :, top : top + weight.shape[2], left : left + weight.shape[3]] = weight
    return result


def _add_bias(main: _Branch, other: _Branch) -> Array | None:
    assert main.conv is not None
    biases = [main.conv.bias, other.conv.bias if other.conv is not None else None]
    if other.norm is not None and other.norm.affine is not None:
        biases.append(other.norm.affine.shift)
    found = [bias.astype(np.float64) for bias in biases if bias is not None]
    return sum(found[1:], found[0]) if found else None


def _structure(weight: Array) -> Pattern | None:
    """The N:M or 1xN pattern of a weight, if it has one and is not all zero."""
    found = detect(weight)
    structured = isinstance(found.pattern, (NM, OneByN)) and 0 < found.density < 1
    return found.pattern if structured else None


def _breach(before: Array, after: Array, pattern: Pattern) -> _Breach | None:
    if isinstance(pattern, OneByN):
        # A dense weight passes `check` with every block kept; here no dropped block may come back.
        channels = before.shape[0]
        starts = np.arange(0, channels, pattern.n)
        order = np.asarray(detect(before).order or range(channels))
        kept = [(w != 0).any(axis=(2, 3))[order] for w in (before, after)]
        live = [np.add.reduceat(filters, starts) > 0 for filters in kept]
        back = live[1] & ~live[0]
        violations = int(np.count_nonzero(back))
        if not violations:
            return None
        group, channel = divmod(int(back.argmax()), back.shape[1])
        return _Breach(violations, (int(order[group * pattern.n]), channel, 0, 0))
    result = check(after, pattern)
    return None if result.ok else _Breach(result.violations, result.first)
