"""The rows of the graph: what stands in them, how they are grouped, and what a chosen one tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from nmcompile.units import count
from nmcompile.viewer.graph import Kind, LoweredGraph, Node
from nmcompile.viewer.lanes import Row as Lines
from nmcompile.viewer.lanes import lay_out
from nmcompile.viewer.times import Times

KINDS: Final[Mapping[Kind, str]] = {
    "sparse": "skips zeros",
    "dense": "has weights, runs dense",
    "plain": "our kernel, no weights",
    "tvm": "TVM's own lowering",
    "rest": "onnxruntime",
    "end": "input or output",
}
FEWEST = 3
"""Rows that are worth a heading of their own."""


@dataclass(frozen=True)
class Link:
    """A row to go to."""

    row: int
    name: str


@dataclass(frozen=True, eq=False)
class Entry:
    """One row.

    share, kept: of the largest number of multiply-accumulates in the model, and of these on
        non-zeros. time_share: of the longest time; None where no time is known.
    facts: name and value. searched: what a search looks at.
    """

    row: int
    node: Node
    lines: Lines
    pattern: str
    density: float | None
    macs: float
    share: float
    ms: float | None
    together: int
    time_share: float | None
    facts: Sequence[tuple[str, str]]
    reason: str
    reads: Sequence[Link]
    readers: Sequence[Link]
    searched: str


@dataclass(eq=False)
class Group:
    """Rows that fold together: a part of the model, or a module in it.

    heading: "" where there is none. level: 0 for parts, 1 for modules.
    above, below: lanes of the tensors that enter and leave the rows. summary: what they add up to.
    """

    heading: str
    level: int
    kind: str = ""
    notes: Sequence[str] = ()
    ms: float | None = None
    entries: list[Entry] = field(default_factory=list)
    above: tuple[int, ...] = ()
    below: tuple[int, ...] = ()
    summary: str = ""


def make_entries(graph: LoweredGraph, times: Times | None) -> list[Entry]:
    """One entry for each node."""
    nodes = graph.nodes
    lines = lay_out([node.reads for node in nodes])
    readers: dict[int, list[int]] = {}
    for place, node in enumerate(nodes):
        for read in node.reads:
            readers.setdefault(read, []).append(place)
    most = max((_macs(node) for node in nodes), default=0.0) or 1.0
    sharing = Counter((node.name, node.symbol) for node in nodes if node.kind != "rest")
    found = [_time(node, times) for node in nodes]
    longest = max((ms for ms in found if ms is not None), default=0.0) or 1.0
    entries = []
    for place, (node, ms) in enumerate(zip(nodes, found, strict=True)):
        together = sharing[node.name, node.symbol] if ms is not None else 0
        facts, pattern = node.facts, str(node.facts.get("pattern", ""))
        entries.append(
            Entry(
                row=place,
                node=node,
                lines=lines[place],
                pattern=pattern,
                density=facts.get("density"),
                macs=_macs(node),
                share=_macs(node) / most,
                ms=ms,
                together=together,
                time_share=None if ms is None or together > 1 else ms / longest,
                facts=_facts(node, graph, ms, together, times),
                reason=_reason(node),
                reads=[Link(read, nodes[read].name) for read in node.reads],
                readers=[Link(reader, nodes[reader].name) for reader in readers.get(place, ())],
                searched=" ".join([node.name, node.what, node.symbol, pattern]).lower(),
            )
        )
    return entries


def _macs(node: Node) -> float:
    return float(node.facts.get("macs", 0))


def _reason(node: Node) -> str:
    if node.facts and not node.facts.get("sparse"):
        return str(node.facts.get("reason") or "")
    return ""


def _time(node: Node, times: Times | None) -> float | None:
    row = times.rows.get((node.name, node.symbol)) if times is not None else None
    return None if row is None else row.ms


def _facts(
    node: Node, graph: LoweredGraph, ms: float | None, together: int, times: Times | None
) -> list[tuple[str, str]]:
    facts, density = node.facts, node.facts.get("density")
    axis, also = facts.get("axis"), facts.get("also")
    macs = _macs(node)
    pattern = str(facts.get("pattern", ""))
    if axis and axis != "ic":
        pattern += f", groups along the flattened {'OIHW' if axis == 'flat' else 'OHWI'} weight"
    elif axis:
        pattern += ", groups along the input channels"
    if facts.get("scattered"):
        pattern += ", filters of a block scattered over the layer"
    found = [
        ("runs as", KINDS[node.kind]),
        ("operator", str(facts.get("op", "")) if node.kind != "rest" else node.what),
        ("kernel", node.symbol if node.kind not in ("rest", "end") else ""),
        ("pattern", pattern),
        ("holds too", ", ".join(also) if also else ""),
        ("kept", "" if density is None else f"{density:.1%} of the weights"),
        ("weight", spell(facts.get("shape"))),
        ("writes", spell(node.shape)),
        ("MACs", f"{count(macs)} dense" if macs else ""),
        ("on non-zeros", count(macs * density) if macs and density is not None else ""),
        ("runs", f"{node.calls} times, on groups of the batch" if node.calls > 1 else ""),
    ]
    if ms is not None and times is not None:
        shared = f" of {together} calls of this function together" if together > 1 else ""
        found.append(("time", f"{ms:.4g} ms{shared}, {ms / (times.total or 1.0):.1%} of the run"))
        row = times.rows[node.name, node.symbol]
        if row.nonzero_gflops is not None:
            found.append(("rate", f"{row.nonzero_gflops:.0f} GFLOP/s on non-zeros"))
        if row.roof_share is not None:
            found.append(("of the roof", f"{row.roof_share:.0%}"))
    if len(graph.parts) > 1 and node.part >= 0:
        part = graph.parts[node.part]
        found.append(("part", f"{node.part + 1} of {len(graph.parts)}, {part.runs}"))
    return [(name, value) for name, value in found if value]


def make_groups(entries: Sequence[Entry], graph: LoweredGraph, times: Times | None) -> list[Group]:
    """The rows under headings of parts, where there are several, and of modules."""
    groups: list[Group] = []
    several = len(graph.parts) > 1
    start = 0
    while start < len(entries):
        part = entries[start].node.part
        behind = start
        while behind < len(entries) and entries[behind].node.part == part:
            behind += 1
        own = entries[start:behind]
        modules = _modules(own)
        if several and part >= 0:
            groups.append(_part_heading(part, graph, times, own))
        groups += modules
        start = behind
    return groups


def _part_heading(
    part: int, graph: LoweredGraph, times: Times | None, own: Sequence[Entry]
) -> Group:
    about = graph.parts[part]
    kinds = sorted(about.operators, key=lambda name: -about.operators[name])
    spelt = ", ".join(f"{about.operators[name]} x {name}" for name in kinds)
    row = times.rows.get((about.call, about.runs)) if times is not None and about.call else None
    return Group(
        f"Part {part + 1} of {len(graph.parts)}: {about.runs}",
        0,
        "rest" if about.call else "ours",
        [*([spelt] if spelt else []), *(f"not ours because {reason}" for reason in about.reasons)],
        None if row is None else row.ms,
        above=own[0].lines.above,
        below=own[-1].lines.below,
        summary=_summary(own),
    )


def _summary(entries: Sequence[Entry]) -> str:
    said = [f"{len(entries)} row{'s' * (len(entries) != 1)}"]
    macs = sum(entry.macs for entry in entries)
    if macs:
        done = sum(e.macs * (1.0 if e.density is None else e.density) for e in entries)
        said.append(f"{count(macs)} MACs, {done / macs:.0%} of them on non-zeros")
    return ", ".join(said)


def _modules(entries: Sequence[Entry]) -> list[Group]:
    """Runs of rows of one module; what is called after nothing belongs to the one around it."""
    paths = [_path(entry) for entry in entries]
    known = [path for path in paths if len(path) > 1]
    depth = 0
    while known and all(len(path) > depth + 1 for path in known) and (
        len({path[depth] for path in known}) == 1
    ):  # fmt: skip
        depth += 1
    own = [(path[depth] if len(path) > depth + 1 else "") if path else None for path in paths]
    before, behind = _filled(own), _filled(own[::-1])[::-1]
    names = [a if a == b else "" for a, b in zip(before, behind, strict=True)]
    groups: list[Group] = []
    for entry, name in zip(entries, names, strict=True):
        if not groups or groups[-1].heading != name:
            groups.append(Group(name, 1))
        groups[-1].entries.append(entry)
    for group in groups:
        if len(group.entries) < FEWEST:
            group.heading = ""
        group.above = group.entries[0].lines.above
        group.below = group.entries[-1].lines.below
        group.summary = _summary(group.entries)
    return groups


def _filled(names: Sequence[str | None]) -> list[str]:
    """The names, in place of None the one before it."""
    found, last = list[str](), ""
    for name in names:
        last = last if name is None else name
        found.append(last)
    return found


def _path(entry: Entry) -> list[str]:
    """The modules that a layer is in, and its own name; empty for what has no name of the model."""
    node = entry.node
    if node.kind == "rest" or node.facts:
        return [word for word in node.name.replace("/", ".").split(".") if word]
    return []


def spell(shape: Any) -> str:
    """Dimensions: 64 x 3 x 7 x 7."""
    if shape is None:
        return ""
    return " x ".join(map(str, shape)) or "scalar"
