"""Colours and shapes: the same pattern or engine looks the same in every plot of a report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from nmcompile.bench.engines.table import OURS
from nmcompile.bench.report.data import (
    Entry,
    Site,
    engine_name,
    family,
    family_rank,
    pattern_name,
)
from nmcompile.bench.results import Case

SHAPES: Final = ("circle", "square", "triangle-up", "diamond", "cross")
COLOURS: Final = 7  # --s0 to --s6 of base.css
PEERS: Final = 4  # --p0 to --p3


@dataclass(frozen=True)
class Series:
    """How a line or a kind of points looks; colour is a name of base.css.

    legend: its name in the legend, where several share a look; name where it is empty.
    """

    name: str
    colour: str
    shape: str = "circle"
    dashed: bool = False
    legend: str = ""


class Palette:
    """The looks of all entries of a report.

    A family of patterns has a colour, its densities have shapes; engines beside ours are grey and
    dashed, our dense pattern is black or white. Where we ran several targets or dtypes, all but the
    first are dashed.
    """

    def __init__(self, entries: Sequence[Entry], sites: Sequence[Site]) -> None:
        ours = [entry.case for entry in entries if entry.ours]
        # What tells apart two of our cases of one pattern.
        self._variants = list(dict.fromkeys(_variant(case) for case in ours))
        # Each precision is one target's, as a rule, and says enough.
        self._clear = len({case.dtype for case in ours}) == len(self._variants)
        ranked = sorted({family_rank(case) for case in ours if family(case) != "dense"})
        self._families = [name for _, name in ranked]
        peers = dict.fromkeys(engine_name(e.case) for e in entries if not e.ours)
        self._peers = list(peers)
        self._shapes: dict[tuple[str, str, str], int] = {}
        for case in sorted(ours, key=lambda case: -case.density):
            same = [look for look in self._shapes if look[0] == family(case)]
            self._shapes.setdefault(_look(case), len(same))
        self._sites = [site.name for site in sites]

    def of_case(self, case: Case) -> Series:
        """Of one pattern or peer."""
        if case.engine != OURS:
            name = engine_name(case)
            place = self._peers.index(name)
            shape = SHAPES[place % len(SHAPES)]
            own = name if case.pattern in ("", "dense") else f"{name}, {pattern_name(case)}"
            return Series(own, f"--p{place % PEERS}", shape, dashed=True, legend=name)
        shape = SHAPES[self._shapes[_look(case)] % len(SHAPES)]
        name = self._named(pattern_name(case), case)
        return Series(name, self._colour(case), shape, self._second(case))

    def of_family(self, case: Case) -> Series:
        """Of all densities of a family."""
        name = self._named(family(case), case)
        return Series(name, self._colour(case), dashed=self._second(case))

    def of_site(self, site: Site) -> Series:
        """Of a run or device."""
        place = self._sites.index(site.name)
        return Series(site.name, f"--s{place % COLOURS}", SHAPES[place % len(SHAPES)])

    def _second(self, case: Case) -> bool:
        return self._variants.index(_variant(case)) > 0

    def _colour(self, case: Case) -> str:
        name = family(case)
        return "--dense" if name == "dense" else f"--s{self._families.index(name) % COLOURS}"

    def _named(self, name: str, case: Case) -> str:
        variant = case.dtype if self._clear else _variant(case)
        return f"{name}, {variant}" if len(self._variants) > 1 else name


def _variant(case: Case) -> str:
    return f"{case.target} {case.dtype}".strip()


def _look(case: Case) -> tuple[str, str, str]:
    return family(case), _variant(case), pattern_name(case)


def legend(series: Iterable[Series]) -> list[Series]:
    """One of each look: the dense pattern, the peers, then ours by family."""
    looks = {(one.colour, one.shape, one.dashed): one for one in series}
    return sorted(looks.values(), key=lambda one: one.colour)
