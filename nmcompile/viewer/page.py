"""A model on one page: what runs, why layers are dense, and maps of weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nmcompile.pages import render_page
from nmcompile.runtime import Manifest
from nmcompile.runtime.variants import spell_all
from nmcompile.units import count
from nmcompile.viewer.drawing import draw_heading, draw_mark, draw_row
from nmcompile.viewer.graph import LoweredGraph, read_graph
from nmcompile.viewer.maps import Picture
from nmcompile.viewer.rows import KINDS, Entry, Link, make_entries, make_groups, spell
from nmcompile.viewer.times import Times

OPEN_ROWS: Final = 200
"""Rows of a page on which nothing is folded at first."""


@dataclass(frozen=True)
class Reason:
    """Why layers run dense; share: of the model's multiply-accumulates, all of theirs."""

    text: str
    layers: Sequence[Link]
    nameless: Sequence[str]
    share: float


@dataclass(frozen=True, eq=False)
class Subject:
    """What the page is about.

    title: of the page. manifest, contents: as `read_graph` takes them. digest, nbytes: of the
        artifact, "" and 0 for a model that was only lowered. notes: what compiling had to say.
    """

    title: str
    manifest: Manifest
    contents: Mapping[str, Any]
    digest: str = ""
    nbytes: int = 0
    notes: Sequence[str] = ()


def render_view(
    subject: Subject,
    times: Times | None = None,
    pictures: Sequence[Picture] = (),
    no_pictures: str = "",
) -> str:
    """The page, as HTML.

    Args:
        subject: the model.
        times: a profile of it.
        pictures: maps of weights.
        no_pictures: why there are none, or not those of all layers; "" where there are.

    Raises:
        InputError: jinja2 is not installed.
    """
    graph = read_graph(subject.manifest, subject.contents)
    entries = make_entries(graph, times)
    groups = make_groups(entries, graph, times)
    widest = max((max((e.lines.lane, *e.lines.above)) + 1 for e in entries), default=1)
    by_name = {e.node.facts["name"]: e.row for e in entries if e.node.facts}
    return render_page(
        __package__,
        "view",
        "html",
        title=subject.title,
        finding=_finding(subject.manifest, times),
        scope=_scope(subject, graph),
        kinds=[(kind, KINDS[kind]) for kind in KINDS if any(e.node.kind == kind for e in entries)],
        groups=groups,
        entries=entries,
        shown=[
            (tag, name)
            for tag, name, there in (
                ("macs", "MACs", any(e.macs for e in entries)),
                ("ms", "time", times is not None),
            )
            if there
        ],
        folded=len(entries) > OPEN_ROWS,
        row_lines=lambda entry: draw_row(entry.lines, entry.node.kind, widest),
        heading_lines=lambda group, folded: draw_heading(group.above, group.below, folded, widest),
        mark=draw_mark,
        times=times,
        joined=graph.joined,
        elsewhere=[(number, part) for number, part in enumerate(graph.parts, 1) if part.reasons],
        reasons=_reasons(subject.manifest, graph, entries),
        pictures=[(picture, by_name.get(picture.name)) for picture in pictures],
        mapped={picture.name: place for place, picture in enumerate(pictures)},
        no_pictures=no_pictures,
        facts=_facts(subject),
        notes=subject.notes,
        count=count,
        spell=spell,
    )


def _layers(manifest: Manifest) -> list[dict[str, Any]]:
    from nmcompile.layer_facts import known_facts

    return [known_facts(layer) for layer in manifest.layers]


def _finding(manifest: Manifest, times: Times | None) -> str:
    layers = _layers(manifest)
    sparse = sum(bool(layer.get("sparse")) for layer in layers)
    macs = sum(layer.get("macs", 0) for layer in layers)
    done = sum(layer.get("macs", 0) * layer.get("density", 1.0) for layer in layers)
    said = f"{sparse} of {len(layers)} layers skip their zeros"
    if macs:
        said += (
            f"; {done / macs:.1%} of {count(macs)} multiply-accumulates meet a weight that is not 0"
        )
    if times is not None:
        said += f". The calls take {times.total:.4g} ms together: {times.said}"
    return said + "."


def _scope(subject: Subject, graph: LoweredGraph) -> list[str]:
    manifest = subject.manifest
    ours = sum(part.call == "" for part in graph.parts)
    said = [manifest.target.kind, f"{len(manifest.calls)} calls a run"]
    if len(graph.parts) > 1:
        said.append(f"{ours} parts of ours, {len(graph.parts) - ours} of onnxruntime's")
    said.append(
        f"{count(subject.nbytes)}B"
        if subject.nbytes
        else "lowered to look at: nothing was compiled"
    )
    return said


def _facts(subject: Subject) -> list[tuple[str, str]]:
    manifest = subject.manifest
    producer = manifest.producer
    features = ", ".join(manifest.target.cpu_features)

    def tensors(specs: Any) -> str:
        return "; ".join(
            f"{spec.name}: {spec.dtype}, "
            + ("any shape" if spec.any_shape else spell(spec.shape).replace("-1", "?"))
            for spec in specs
        )

    found = [
        ("digest", subject.digest),
        ("model", manifest.model.name),
        ("sha256 of the model", manifest.model.digest),
        ("target", manifest.target.kind + (f" ({features})" if features else "")),
        ("inputs", spell_all(tensors(form.inputs) for form in manifest.forms)),
        ("outputs", spell_all(tensors(form.outputs) for form in manifest.forms)),
        (
            "made with",
            f"nmcompile {producer.nmcompile}, TVM {producer.tvm}"
            + (f", onnxruntime {producer.onnxruntime}" if producer.onnxruntime else ""),
        ),
    ]
    return [(name, value) for name, value in found if value]


def _reasons(manifest: Manifest, graph: LoweredGraph, entries: Sequence[Entry]) -> list[Reason]:
    """Why layers run dense, the reason of most multiply-accumulates first."""
    layers = _layers(manifest)
    rows = {e.node.facts["name"]: e.row for e in entries if e.node.facts}
    total = sum(layer.get("macs", 0) for layer in layers) or 1
    macs, named = Counter[str](), dict[str, list[str]]()
    for layer in layers:
        if layer.get("sparse"):
            continue
        # Figures that differ from layer to layer would make a reason of each.
        text = str(layer.get("reason") or "unknown").partition(": ")
        key = text[0] if any(digit in text[2] for digit in "0123456789") else "".join(text)
        macs[key] += int(layer.get("macs", 0))
        named.setdefault(key, []).append(str(layer.get("name", "?")))
    return [
        Reason(
            key,
            [Link(rows[name], name) for name in named[key] if name in rows],
            [name for name in named[key] if name not in rows],
            number / total,
        )
        for key, number in macs.most_common()
    ]
