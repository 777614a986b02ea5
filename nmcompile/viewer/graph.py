"""A compiled model as a graph: what runs, in which part, and who reads what."""

from __future__ import annotations

import graphlib
import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from nmcompile.layer_facts import is_shape, known_facts, plain_name
from nmcompile.runtime import Manifest
from nmcompile.runtime.chain import RUNS
from nmcompile.runtime.steps import ONNX, Step
from nmcompile.viewer.rest import read_rest

Kind = Literal["sparse", "dense", "plain", "tvm", "rest", "end"]
"""What runs a node: a kernel of ours that skips zeros, one that does not, one without weights,
TVM's own lowering, onnxruntime; or none: it is an input or output of the model."""


@dataclass(frozen=True, eq=False)
class Node:
    """What stands in one row.

    name: of the layer, function, ONNX node, input or output.
    what: the kernel or operator.
    symbol: the function that is called, "" for others.
    reads: positions of other nodes.
    shape: of what it writes, where that is known.
    facts: of the layer, from the manifest; empty for others.
    calls: how often it runs: early layers take a batch in groups.
    part: the position of the step that makes it; -1 for inputs of the model.
    """

    name: str
    kind: Kind
    what: str
    symbol: str = ""
    reads: tuple[int, ...] = ()
    shape: tuple[int, ...] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    calls: int = 1
    part: int = -1


@dataclass(frozen=True)
class Part:
    """A step: who runs it, how many operators of which kind the model has there, and why not ours.

    call: what profiles call it; "" for ours, whose calls are nodes.
    """

    runs: str
    call: str
    nodes: int | None
    operators: Mapping[str, int]
    reasons: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class LoweredGraph:
    """The nodes in an order in which all are made before they are read.

    joined: whether the file says who reads what; else each node is behind the one before it.
    unplaced: layers of which no node is known.
    """

    nodes: tuple[Node, ...]
    parts: tuple[Part, ...]
    joined: bool
    unplaced: tuple[Mapping[str, Any], ...]


def read_graph(manifest: Manifest, contents: Mapping[str, Any]) -> LoweredGraph:
    """The graph of an artifact.

    Args:
        manifest: what it says about itself.
        contents: by section; those of ONNX files are read.
    """
    return _Reader(manifest, contents).read()


class _Reader:
    """Gathers nodes; `_makers` has the node that made a tensor of the chain of steps."""

    def __init__(self, manifest: Manifest, contents: Mapping[str, Any]) -> None:
        self._manifest, self._contents = manifest, contents
        self._layers = {
            facts["name"]: facts for facts in map(known_facts, manifest.layers) if "name" in facts
        }
        self._flow = _flow(manifest)
        self._nodes: list[Node] = []
        self._makers: dict[str, int] = {}
        self._joined = True

    def read(self) -> LoweredGraph:
        manifest = self._manifest
        for spec in manifest.inputs:
            self._makers[spec.name] = len(self._nodes)
            self._nodes.append(Node(spec.name, "end", f"input, {spec.dtype}", shape=spec.shape))
        first, parts = 0, []
        for number, step in enumerate(manifest.plan):
            if step.kind == ONNX:
                call = manifest.calls[first].layer if first < len(manifest.calls) else ""
                parts.append(_part(step, call))
                self._add_rest(number, step)
                first += 1
                continue
            parts.append(_part(step, ""))
            behind = self._end_of(number, first)
            self._add_library(number, step, range(first, behind))
            first = behind
        for spec in manifest.outputs:
            maker = self._makers.get(spec.name)
            reads = () if maker is None else (maker,)
            part = -1 if maker is None else self._nodes[maker].part
            shape = None if spec.is_open else spec.shape
            self._nodes.append(
                Node(spec.name, "end", f"output, {spec.dtype}", "", reads, shape, part=part)
            )
        nodes = _in_order(_together(self._nodes))
        placed = {node.facts.get("name") for node in nodes}
        return LoweredGraph(
            tuple(nodes),
            tuple(parts),
            self._joined,
            tuple(facts for name, facts in self._layers.items() if name not in placed),
        )

    def _end_of(self, number: int, first: int) -> int:
        """Where the calls of a library end: before the next step's, if not with the last one."""
        manifest = self._manifest
        calls, behind = manifest.calls, manifest.plan[number + 1 :]
        if not behind:
            return len(calls)
        missing = set(manifest.plan[number].outputs)
        for place in range(first, len(calls)):
            if behind[0].kind == ONNX:
                if calls[place].symbol == RUNS:
                    return place
                continue
            missing -= set(self._flow.get(place, _Flow()).makes)
            if not missing:
                return place + 1
        return len(calls)

    def _add_library(self, number: int, step: Step, places: range) -> None:
        nodes = dict[int, int]()  # by the position of their call
        before = [self._makers[name] for name in step.inputs if name in self._makers]
        for place in places:
            call, flow = self._manifest.calls[place], self._flow.get(place)
            nodes[place] = index = len(self._nodes)
            if flow is None:
                self._joined = False
                reads = before
            else:
                known = [
                    nodes.get(r) if isinstance(r, int) else self._makers.get(r) for r in flow.reads
                ]
                reads = [r for r in known if r is not None]
                self._makers.update(dict.fromkeys(flow.makes, index))
            before = [index]
            self._nodes.append(self._called(call.layer, call.symbol, number, reads, flow))
        for name in step.outputs:
            if not self._joined and before:
                self._makers[name] = before[-1]

    def _called(
        self, layer: str, symbol: str, number: int, reads: Sequence[int], flow: _Flow | None
    ) -> Node:
        facts = self._layers.get(layer, {})
        kind: Kind = "tvm" if symbol == layer else "plain"
        if facts:
            kind = "sparse" if facts.get("sparse") else "dense"
        what = "TVM's own lowering" if kind == "tvm" else symbol.partition("__")[0]
        shape = None if flow is None else flow.shape
        layer = plain_name(layer) if kind == "tvm" else layer
        return Node(layer, kind, what, symbol, _unique(reads), shape, facts, part=number)

    def _add_rest(self, number: int, step: Step) -> None:
        outer = {name: self._makers[name] for name in step.inputs if name in self._makers}
        found = read_rest(self._contents.get(step.section))
        first = len(self._nodes)
        if found is None:
            self._nodes.append(
                Node("onnxruntime", "rest", "part", RUNS, _unique(outer.values()), part=number)
            )
            self._makers.update(dict.fromkeys(step.outputs, first))
            return
        inner = dict(outer)
        for operator in found:
            reads = [inner[name] for name in operator.reads if name in inner]
            names = (operator.name, *operator.writes)
            facts = next((self._layers[name] for name in names if name in self._layers), {})
            inner.update(dict.fromkeys(operator.writes, len(self._nodes)))
            name = operator.name or next(iter(operator.writes), operator.op)
            self._nodes.append(
                Node(
                    *(name, "rest", operator.op, RUNS, _unique(reads), operator.shape, facts),
                    part=number,
                )
            )
        self._makers.update({name: inner[name] for name in step.outputs if name in inner})


@dataclass(frozen=True)
class _Flow:
    reads: tuple[int | str, ...] = ()
    shape: tuple[int, ...] | None = None
    makes: tuple[str, ...] = ()


def _flow(manifest: Manifest) -> dict[int, _Flow]:
    """What layers say of calls, by their position; what is not as FORMAT.md has it is left out."""
    found = {}
    for layer in manifest.layers:
        entries = layer.get("flow")
        for entry in entries if type(entries) is list else []:
            if type(entry) is not dict:
                continue
            call, reads, shape = entry.get("call"), entry.get("reads"), entry.get("shape")
            makes = entry.get("makes", [])
            if (
                type(call) is int
                and type(reads) is list
                and all(type(read) in (int, str) for read in reads)
                and is_shape(shape)
                and type(makes) is list
                and all(type(name) is str for name in makes)
            ):
                found[call] = _Flow(tuple(reads), tuple(shape or ()), tuple(makes))
    return found


def _part(step: Step, call: str) -> Part:
    about = step.about
    operators, reasons, nodes = about.get("operators"), about.get("reasons"), about.get("nodes")
    counts = operators if type(operators) is dict else {}
    return Part(
        RUNS if step.kind == ONNX else "nmcompile",
        call,
        nodes if type(nodes) is int else None,
        {str(name): count for name, count in counts.items() if type(count) is int},
        tuple(str(r) for r in reasons) if type(reasons) is list else (),
    )


def _together(nodes: Sequence[Node]) -> list[Node]:
    """Calls of one kernel for one layer as one node, as long as nobody then waits for himself."""
    counts = Counter((node.part, node.name, node.symbol) for node in nodes if _can_repeat(node))
    if not any(count > 1 for count in counts.values()):
        return list(nodes)
    places, kept = dict[tuple[int, str, str], int](), list[Node]()
    moved = []
    for node in nodes:
        key = (node.part, node.name, node.symbol)
        if _can_repeat(node) and key in places:
            at = places[key]
            moved.append(at)
            joined = (*kept[at].reads, *node.reads)
            kept[at] = replace(kept[at], reads=joined, calls=kept[at].calls + 1)
            continue
        places[key] = len(kept)
        moved.append(len(kept))
        kept.append(node)
    result = [
        replace(node, reads=_unique(moved[r] for r in node.reads if moved[r] != place))
        for place, node in enumerate(kept)
    ]
    try:
        graphlib.TopologicalSorter(dict(enumerate(n.reads for n in result))).prepare()
    except graphlib.CycleError:
        return list(nodes)
    return result


def _can_repeat(node: Node) -> bool:
    return node.kind in ("sparse", "dense", "plain")


def _in_order(nodes: Sequence[Node]) -> list[Node]:
    """The same nodes, none before one that it reads, else in the order in which they came.

    Outputs stand right behind what makes them.
    """

    def key(place: int) -> tuple[int, int]:
        node = nodes[place]
        return (node.reads[0] if node.kind == "end" and node.reads else place, place)

    waiting = [len(set(node.reads)) for node in nodes]
    readers: dict[int, list[int]] = {}
    for place, node in enumerate(nodes):
        for read in set(node.reads):
            readers.setdefault(read, []).append(place)
    ready = [key(place) for place, count in enumerate(waiting) if not count]
    heapq.heapify(ready)
    order = []
    while ready:
        _, place = heapq.heappop(ready)
        order.append(place)
        for reader in readers.get(place, ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, key(reader))
    new = {place: index for index, place in enumerate(order)}
    return [
        replace(nodes[place], reads=tuple(sorted(new[read] for read in nodes[place].reads)))
        for place in order
    ]


def _unique(places: Any) -> tuple[int, ...]:
    return tuple(dict.fromkeys(places))
