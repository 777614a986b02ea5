"""`nmc inspect --html` and `--layer`: a model as a page, and weights of layers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nmcompile.cli.checks import check_outputs, is_same_file
from nmcompile.cli.guard import working
from nmcompile.cli.options import Shape, find_model, is_factory, shapes_of
from nmcompile.cli.output import print_json
from nmcompile.cli.printing import say
from nmcompile.errors import InputError
from nmcompile.tables import size

if TYPE_CHECKING:
    from nmcompile.viewer.maps import Picture
    from nmcompile.viewer.page import Subject
    from nmcompile.viewer.weights import WeightMap

HtmlOption = Annotated[
    Path | None,
    typer.Option(metavar="OUT.html", help="Write a page to look at instead: graph and weights."),
]
ProfileOption = Annotated[
    Path | None,
    typer.Option(metavar="RUN.json", help="With --html: times of layers, from nmc bench."),
]
LayerOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Show which of its weights are zero; wildcards as in layer1.*. May be repeated.",
    ),
]

ROWS = 32
"""Output channels that are drawn in characters."""


@dataclass(frozen=True)
class Look:
    """What was asked for: a page, with a profile and maps of layers, or these in characters."""

    html: Path | None
    profile: Path | None
    layers: Sequence[str]
    as_json: bool

    @property
    def wanted(self) -> bool:
        """Whether there is anything of it to do."""
        return self.html is not None or bool(self.layers)

    def check(self, pattern: str, spatial: bool) -> None:
        """Hold the options against each other.

        Raises:
            BadParameter: they do not go together.
        """
        if self.profile is not None and self.html is None:
            raise typer.BadParameter("expected --html with it", param_hint="--profile")
        if self.wanted and (pattern != "auto" or spatial):
            raise typer.BadParameter(
                "expected neither --pattern nor --spatial with it, whose findings are tables",
                param_hint="--html" if self.html is not None else "--layer",
            )

    def at_artifact(self, path: Path) -> None:
        """Make the page of an artifact.

        Raises:
            InputError: weights are to be shown, which an artifact keeps in other forms.
            NmcompileError: as `_write`.
        """
        from nmcompile.runtime import read_artifact
        from nmcompile.viewer.page import Subject

        self._check_page(path)
        with working() as progress:
            progress("reading the artifact")
            artifact = read_artifact(path)
            manifest = artifact.manifest
            if self.layers:
                raise InputError(
                    f"layer {self.layers[0]}: {path} keeps weights as its kernels read them, "
                    "packed and for some rearranged, and their zeros are not shown from that; name "
                    "the model that it was compiled from: nmc inspect MODEL --layer "
                    f"{self.layers[0]}"
                )
            subject = Subject(
                path.name, manifest, artifact.parts, artifact.digest, path.stat().st_size
            )
            written = self._write(
                subject,
                {},
                "An artifact keeps weights as its kernels read them. Maps of weights are made from "
                "the model that it was compiled from: nmc inspect MODEL --html OUT.html.",
            )
        self._tell(written)

    def at_model(self, model: str, target: str, shapes: Sequence[Shape], rest: str) -> None:
        """Make the page of a model, as it is lowered here, or draw layers of it in characters.

        Raises:
            NmcompileError: it cannot be read or lowered, or as `_write`.
        """
        self._check_page(Path(model))
        found, dims = find_model(model, shapes), shapes_of(shapes)
        with working() as progress:
            if self.html is None:
                maps = _read_maps(found, dims, self.layers, progress)
            else:
                from nmcompile.viewer.outline import outline
                from nmcompile.viewer.page import Subject

                lowered = outline(found, shapes=dims, target=target, rest=rest, progress=progress)
                progress("drawing")
                title = model if is_factory(model) else Path(model).name
                subject = Subject(title, lowered.manifest, lowered.contents, notes=lowered.notes)
                written = self._write(subject, lowered.weights)
        if self.html is None:
            show_maps(maps, self.as_json)
        else:
            self._tell(written)

    def _check_page(self, model: Path) -> None:
        """Find out before minutes of work that the page cannot be written."""
        if self.html is None:
            return
        for other in (model, self.profile):
            if other is not None and is_same_file(other, self.html):
                raise InputError(
                    f"{self.html} is to be read, and would be overwritten by the page: name "
                    "another output, such as out.html"
                )
        check_outputs(self.html)

    def _write(
        self, subject: Subject, weights: Mapping[str, Any], no_pictures: str = ""
    ) -> dict[str, Any]:
        """Write the page.

        Raises:
            InputError: the profile does not fit, no layer is called so, or a library is missing.
            ArtifactError: the page cannot be written.
        """
        from nmcompile.layer_facts import known_facts
        from nmcompile.runtime.files import replace_file
        from nmcompile.viewer import render_view
        from nmcompile.viewer.maps import make_pictures
        from nmcompile.viewer.times import read_times

        assert self.html is not None
        times = None
        if self.profile is not None:
            times = read_times(self.profile, subject.manifest, subject.digest)
        layers = list(map(known_facts, subject.manifest.layers))
        work = {layer.get("name", ""): layer.get("macs", 0) for layer in layers}
        pictures: list[Picture] = []
        if not no_pictures:
            pictures, no_pictures = make_pictures(weights, work, self.layers)
        page = render_view(subject, times, pictures, no_pictures).encode()
        replace_file(self.html, [page])
        return {
            "kind": "page",
            "page": str(self.html),
            "bytes": len(page),
            "layers": len(layers),
            "maps": [picture.name for picture in pictures],
            "profile": times.said if times is not None else None,
        }

    def _tell(self, written: dict[str, Any]) -> None:
        if self.as_json:
            print_json(written)
            return
        maps = len(written["maps"])
        say(
            f"{written['page']}: {written['layers']} layers, {maps} map{'s' * (maps != 1)} of "
            f"weights, {size(written['bytes'])}"
        )


def _read_maps(
    model: Any, shapes: Mapping[str, Any], wanted: Sequence[str], progress: Any
) -> dict[str, WeightMap]:
    from nmcompile.folding import open_folded
    from nmcompile.viewer.maps import chosen_layers, readable
    from nmcompile.viewer.weights import weight_map

    source, _ = open_folded(model, shapes=shapes, progress=progress)
    weights: dict[str, Any] = {layer.name: layer.weight for layer in source.graph.layers()}
    weights |= {other.name: other.weight for other in source.graph.weighted()}
    names = chosen_layers(list(weights), wanted)
    return {name: weight_map(readable(weights[name], name)) for name in names}


def show_maps(maps: Mapping[str, WeightMap], as_json: bool) -> None:
    """Print layers: what their rows and groups are, and a corner of each in characters."""
    from nmcompile.viewer.weights import DROPPED, KEPT, describe, draw_text, group_words

    if as_json:
        print_json(
            {
                "kind": "layers",
                "layers": [
                    {
                        "name": name,
                        "pattern": str(found.pattern),
                        "shape": list(found.shape),
                        "density": found.density,
                        "order": found.order,
                        "block": list(found.block),
                        "counts": {str(key): number for key, number in found.counts.items()},
                        "channels": found.channels.tolist(),
                        "rows": [
                            "".join(KEPT if kept else DROPPED for kept in row) for row in found.mask
                        ],
                    }
                    for name, found in maps.items()
                ],
            }
        )
        return
    columns = shutil.get_terminal_size((80, 24)).columns
    for place, (name, found) in enumerate(maps.items()):
        if place:
            say("")
        say(f"{name}: {found.pattern}, {found.density:.1%} of {found.mask.size} weights kept")
        for sentence in (*describe(found), *filter(None, [group_words(found)])):
            say(f"  {sentence}")
        say(f"  {KEPT} kept, {DROPPED} zero; the first rows and columns:")
        for line in draw_text(found, ROWS, columns - 2):
            say(f"  {line}")
