"""Which nodes are computed here, and which in onnxruntime: a cut by the cost of crossing it.

Segments take turns, and in each one stands all that can: a node is in the first segment of its
side behind everything that it reads. So none waits for one that comes later, and there are as few
of them as the sides of the nodes allow. What has nothing to gain here then changes sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What bringing tensors over costs, in multiply-accumulates of layers that kernels gain on.

    The call of a segment takes some ten microseconds and reading a tensor back about its bytes at
    the speed of memory; a layer gains about a quarter of its time.
    """

    per_tensor: int = 100_000
    per_byte: float = 0.5

    def of(self, sizes: Iterable[int]) -> float:
        """What tensors of so many bytes cost."""
        return sum(self.per_tensor + self.per_byte * size for size in sizes)


@dataclass(frozen=True)
class Task:
    """What is to be cut; nodes are numbers from 0, each behind those that it reads.

    able: whether a node can be computed here.
    reads: the tensors that a node reads.
    makers: by tensor, the node that makes it; those of the caller's have none.
    sizes: bytes of the tensors, where they are known.
    work: multiply-accumulates that our kernels have a gain from.
    """

    able: Sequence[bool]
    reads: Sequence[Sequence[str]]
    makers: Mapping[str, int]
    sizes: Mapping[str, int]
    work: Sequence[int]


@dataclass(frozen=True)
class Segment:
    """Nodes that run together, in order; here if `ours`, else in onnxruntime."""

    ours: bool
    nodes: tuple[int, ...]


def cut(task: Task, cost: Cost = Cost()) -> list[Segment]:
    """The segments in the order in which they run; without one of ours, nothing pays here."""
    ours = list(task.able)
    if all(ours):
        return [Segment(True, tuple(range(len(ours))))]
    readers = _readers(task)
    while True:
        _give_away(task, ours, readers, cost)
        if not _shift(task, ours, readers, cost):
            break
    turns = _turns(task, ours)
    found: list[Segment] = []
    for turn in sorted(set(turns)):
        nodes = tuple(index for index, when in enumerate(turns) if when == turn)
        if found and found[-1].ours == ours[nodes[0]]:
            nodes = tuple(sorted((*found.pop().nodes, *nodes)))
        found.append(Segment(ours[nodes[0]], nodes))
    return found


def _turns(task: Task, ours: Sequence[bool]) -> list[int]:
    """When each node runs: even turns are ours, odd ones the others'."""
    best: list[int] = []
    for first in (0, 1):  # who begins
        turns: list[int] = []
        for index, side in enumerate(ours):
            parity = (0 if side else 1) ^ first
            behind = [turns[task.makers[name]] for name in task.reads[index] if name in task.makers]
            turn = max(behind, default=0)
            turns.append(turn + (turn % 2 != parity))
        if not best or len(set(turns)) < len(set(best)):
            best = turns
    return best


def _give_away(
    task: Task, ours: list[bool], readers: Mapping[str, Sequence[int]], cost: Cost
) -> None:
    """Hand over pieces whose work does not pay for what crosses; the one with most work stays."""
    while True:
        pieces = _pieces(task, ours)
        work = {piece: sum(task.work[index] for index in piece) for piece in pieces}
        idle = [piece for piece in pieces if not work[piece]]
        losing = [piece for piece in pieces if work[piece] < _price(task, piece, readers, cost)]
        if not idle and len(pieces) > 1 and losing:
            idle = [min(losing, key=lambda piece: work[piece])]
        if not idle:
            return
        for piece in idle:
            for index in piece:
                ours[index] = False


def _pieces(task: Task, ours: Sequence[bool]) -> list[tuple[int, ...]]:
    """Our nodes of one turn that hang together."""
    turns = _turns(task, ours)
    roots = list(range(len(ours)))

    def root(index: int) -> int:
        while roots[index] != index:
            roots[index] = roots[roots[index]]
            index = roots[index]
        return index

    for index, names in enumerate(task.reads):
        for name in names:
            maker = task.makers.get(name)
            if maker is not None and ours[index] and ours[maker] and turns[index] == turns[maker]:
                roots[root(index)] = root(maker)
    found: dict[int, list[int]] = {}
    for index, side in enumerate(ours):
        if side:
            found.setdefault(root(index), []).append(index)
    return [tuple(piece) for piece in found.values()]


def _price(
    task: Task, piece: Iterable[int], readers: Mapping[str, Sequence[int]], cost: Cost
) -> float:
    """What it costs to bring a piece its tensors, and others theirs."""
    inside = set(piece)
    crossing = {
        name
        for index in inside
        for name in task.reads[index]
        if name in task.makers and task.makers[name] not in inside
    }
    crossing |= {
        name
        for name, nodes in readers.items()
        if task.makers.get(name) in inside and not inside.issuperset(nodes)
    }
    return cost.of(task.sizes.get(name, 0) for name in crossing)


def _shift(task: Task, ours: list[bool], readers: Mapping[str, Sequence[int]], cost: Cost) -> bool:
    """Hand over nodes at the edge where it costs less to cross behind, or before, them.

    So integers cross and not the real numbers that they stand for: a rounding goes where its input
    is made, and what undoes it to where its output is read. And one tensor crosses in place of the
    slices of it that are read on the other side. Says whether there were any.
    """
    changed = False
    made: dict[int, list[str]] = {}
    for name, maker in task.makers.items():
        made.setdefault(maker, []).append(name)

    def ends(index: int) -> tuple[list[str], list[str]] | None:
        """What a node of ours that may move reads and makes, if the sizes of these are known."""
        inputs = [name for name in task.reads[index] if name in task.makers]
        outputs = [name for name in made.get(index, ()) if readers.get(name)]
        known = all(name in task.sizes for name in (*inputs, *outputs))
        movable = ours[index] and not task.work[index] and inputs and outputs and known
        return (inputs, outputs) if movable else None

    def price(names: Iterable[str]) -> float:
        return cost.of(task.sizes[name] for name in names)

    for index in range(len(ours)):
        found = ends(index)
        if found is None:
            continue
        inputs, outputs = found
        if all(not ours[task.makers[name]] for name in inputs) and price(outputs) < price(inputs):
            ours[index] = False
            changed = True
    for read, nodes, outputs in _leaving(task, ours, readers, ends):
        # What others read already crosses anyway.
        extra = [name for name in read if all(ours[reader] for reader in readers[name])]
        if price(extra) < price(outputs):
            for index in nodes:
                ours[index] = False
            changed = True
    return changed


def _leaving(
    task: Task,
    ours: Sequence[bool],
    readers: Mapping[str, Sequence[int]],
    ends: Callable[[int], tuple[list[str], list[str]] | None],
) -> list[tuple[tuple[str, ...], list[int], list[str]]]:
    """Nodes all of whose outputs are read by others only: (inputs, who reads these, outputs)."""
    found: dict[tuple[str, ...], tuple[list[int], list[str]]] = {}
    for index in range(len(ours)):
        both = ends(index)
        if both is None:
            continue
        inputs, outputs = both
        if all(not ours[reader] for name in outputs for reader in readers[name]):
            nodes, made = found.setdefault(tuple(inputs), ([], []))
            nodes.append(index)
            made += outputs
    return [(inputs, nodes, made) for inputs, (nodes, made) in found.items()]


def _readers(task: Task) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index, names in enumerate(task.reads):
        for name in names:
            found.setdefault(name, []).append(index)
    return found
