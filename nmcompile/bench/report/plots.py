"""Draws panels: Vega-Lite specifications, rendered to SVG here, so that the page needs no library.

Colours are names of base.css, which makes the drawings follow the page from light to dark.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Final

from nmcompile.bench.report.panels import Guide, Panel, Point
from nmcompile.bench.report.table import join
from nmcompile.errors import InputError

WIDTH: Final = 360  # what a phone shows without scaling; three stand beside each other on a desk
HEIGHT: Final = 250
WIDE: Final = 1120  # layers have a second drawing for desks
MOST_TICKS: Final = 8
ROW: Final = 22  # height of a line of names

_CONFIG: Final = {
    "background": None,
    "font": "Arial",  # for measuring; the page has the browser's own
    "view": {"stroke": None},
    "axis": {
        **{"labelColor": "var(--soft)", "titleColor": "var(--soft)", "titleFontWeight": "normal"},
        **{"labelFontSize": 11, "titleFontSize": 11, "titlePadding": 6, "labelPadding": 4},
        **{"gridColor": "var(--grid)", "domain": False, "ticks": False, "labelFlush": False},
    },
    "axisX": {"grid": False, "domain": True, "domainColor": "var(--soft)", "labelFlush": False},
}

# What the page says itself, and what Vega draws to catch the mouse.
_WASTE: Final = re.compile(
    r'<path class="(?:fore|back)ground"[^>]*/>| font-family="[^"]*"| pointer-events="none"'
    r'| opacity="1"| aria-roledescription="[^"]*container"'
)
_GEOMETRY: Final = re.compile(r' (?:d|transform|x2|y2)="[^"]*"')
_LONG: Final = re.compile(r"(-?\d+\.\d)\d+")
_HEAD: Final = re.compile(r'<svg [^>]*viewBox="([\d. -]+)"[^>]*>')


def draw(panel: Panel) -> list[str]:
    """The drawings of a panel, as SVG elements: one for all widths, or one wide and one narrow.

    Raises:
        InputError: vl-convert-python is missing.
    """
    if panel.kind == "layers":
        return [_svg(_layers(panel, WIDE), WIDE, 340), _svg(_layers(panel, WIDTH), WIDTH, 300)]
    if panel.kind == "sites":
        names = len({point.y for point in panel.points})
        return [_svg(_sites(panel), WIDTH, 50 + ROW * names)]
    kinds = {"density": _density, "accuracy": _accuracy}
    return [_svg(kinds.get(panel.kind, _scaling)(panel), WIDTH, HEIGHT)]


def _svg(spec: dict[str, Any], width: int, height: int) -> str:
    try:
        import vl_convert
    except ImportError as error:
        raise InputError(
            "the report needs vl-convert-python, which is not installed: "
            "pip install 'nmcompile[bench]'"
        ) from error
    size = {"width": width, "height": height, "autosize": {"type": "fit", "contains": "padding"}}
    drawn = vl_convert.vegalite_to_svg(
        {"config": _CONFIG, "padding": {"left": 2, "right": 8, "top": 8, "bottom": 2}}
        | size
        | spec,
        allowed_base_urls=[],  # nothing is to be fetched
    )
    head = _HEAD.match(drawn)
    assert head is not None
    body = _WASTE.sub("", drawn[head.end() :])
    body = _GEOMETRY.sub(lambda found: _LONG.sub(r"\1", found[0]), body)
    return f'<svg viewBox="{head[1]}" role="graphics-document">{body}'


def _density(panel: Panel) -> dict[str, Any]:
    ratios = _bounds(panel.points, "y")
    marks = [guide for guide in panel.guides if guide.kind == "break-even"]
    low, high = min(ratios[0], 1.0) * 0.93, max(ratios[1], 1.0) * 1.1
    if marks:
        # Room for the numbers, which stand under the line where speed-up is 1.
        low = min(low, (high ** (-0.1 * (1 + len(marks)))) * 0.85)
    densities = sorted({float(point.x) for point in panel.points}, reverse=True)
    x = _axis("x", "weights kept, %", densities[-1] / 1.12, densities[0] * 1.12, log=True)
    x["axis"] |= {
        **{"values": densities, "labelExpr": "format(datum.value * 100, '.3~g')"},
        "labelOverlap": "greedy",
    }
    x["scale"]["reverse"] = True
    y = _axis("y", "speed-up", low, high, log=True)
    y["axis"] |= {"labelExpr": "format(datum.value, '~g') + 'x'"}
    lines = [point for point in panel.points if point.series.colour != "--dense"]
    rings = [
        {"x": mark.at, "y": 1, "colour": f"var({mark.colour})", "text": mark.name}
        for mark in sorted(marks, key=lambda mark: -mark.at)
    ]
    return {
        "layer": [
            *_guides(panel.guides),
            _intervals(panel.points, x, y),
            _lines(lines, x, y),
            _points(panel.points, x, y),
            *(_ring(ring, place, x, y) for place, ring in enumerate(rings)),
        ]
    }


def _ring(ring: dict[str, Any], place: int, x: dict[str, Any], y: dict[str, Any]) -> dict[str, Any]:
    own = {"value": ring["colour"]}
    return {
        "data": {"values": [ring]},
        "encoding": {"x": x, "y": y},
        "layer": [
            {
                "mark": {"type": "point", "size": 90, "aria": False, "strokeWidth": 2},
                "encoding": {"stroke": own, "fill": {"value": "var(--panel)"}},
            },
            {
                "mark": {
                    **{"type": "text", "dy": 13 + 12 * place, "dx": 5, "align": "left"},
                    **{"fontSize": 11, "fontWeight": "bold", "aria": False},
                    **{"stroke": "var(--panel)", "strokeWidth": 3},  # clear of lines; base.css
                },
                "encoding": {"text": {"field": "text"}, "color": own},
            },
        ],
    }


def _scaling(panel: Panel) -> dict[str, Any]:
    by_threads = panel.kind == "threads"
    values = sorted({float(point.x) for point in panel.points})
    x = _axis("x", panel.kind, values[0] / 1.06, values[-1] * 1.06, log=True)
    x["axis"] |= {"values": values, "labelOverlap": "greedy"}
    low, high = _bounds(panel.points, "y")
    title = "images per second" if by_threads else "ms per image"
    y = _axis("y", title, low * 0.9, high * 1.1, log=True)
    return {"layer": [_lines(panel.points, x, y), _points(panel.points, x, y)]}


def _accuracy(panel: Panel) -> dict[str, Any]:
    left, right = _bounds(panel.points, "x")
    x = _axis("x", "ms per image", left * 0.85, right * 1.15, log=True)
    low, high = _bounds(panel.points, "y")
    room = max((high - low) * 0.12, 0.1)
    y = _axis("y", "top-1, %", low - room, high + room, log=False)
    front = [point for point in panel.points if point.label]
    step = {
        "data": {"values": [{"x": point.x, "y": point.y} for point in front]},
        "mark": {
            **{"type": "line", "interpolate": "step-after", "color": "var(--soft)"},
            **{"strokeWidth": 1, "strokeDash": [2, 3], "aria": False},
        },
        "encoding": {"x": x, "y": y},
    }
    return {"layer": [step, _points(panel.points, x, y, size=70)]}


def _sites(panel: Panel) -> dict[str, Any]:
    left, right = _bounds(panel.points, "x")
    x = _axis("x", "ms", left * 0.9, right * 1.1, log=True)
    x["axis"] |= {"grid": True}
    names = list(dict.fromkeys(str(point.y) for point in panel.points))
    y = {
        **{"field": "y", "type": "nominal", "sort": names},
        "axis": {"title": None, "grid": True, "labelColor": "var(--ink)", "labelLimit": 150},
    }
    spans = {
        "data": {"values": [_datum(point) for point in panel.points]},
        "mark": {"type": "rule", "color": "var(--soft)", "strokeWidth": 1.5, "aria": False},
        "encoding": {
            "y": y,
            "x": x | {"aggregate": "min"},
            "x2": {"field": "x", "aggregate": "max"},
        },
    }
    return {"layer": [spans, _points(panel.points, x, y, size=70)]}


def _layers(panel: Panel, width: int) -> dict[str, Any]:
    narrow = width == WIDTH
    last = max(float(point.x) for point in panel.points)
    x = _axis("x", "layer, in the order in which they run", 0, last + 1, log=False)
    x["axis"] |= {"tickMinStep": 1, "tickCount": 5 if narrow else 12}
    tops = [guide.at for guide in panel.guides] + [_bounds(panel.points, "y")[1]]
    y = _axis("y", "non-zero GFLOP/s", 0, max(tops) * 1.12, log=False)
    area = 2600 if narrow else 5200
    named = [point for point in panel.points if point.label]
    labels = {
        "data": {"values": [_datum(point) for point in named]},
        "mark": {
            **{"type": "text", "fontSize": 11, "fontWeight": "bold", "color": "var(--ink)"},
            **{"dy": {"expr": f"-8 - sqrt({area} * datum.size / PI)"}, "aria": False},
        },
        "encoding": {"x": x, "y": y, "text": {"field": "label"}},
    }
    return {
        "layer": [
            *_guides(panel.guides, x, named=True),
            _points(panel.points, x, y, area=area),
            *([labels] if named else []),
        ]
    }


def _axis(channel: str, title: str, low: float, high: float, *, log: bool) -> dict[str, Any]:
    scale: dict[str, Any] = {"domain": [low, high], "nice": False, "zero": False}
    axis: dict[str, Any] = {"title": title, "grid": channel == "y"}
    if log:
        scale |= {"type": "log", "base": 2}
        axis |= {"values": log_ticks(low, high), "labelExpr": "format(datum.value, '~g')"}
    else:
        axis |= {"tickCount": 5}
    return {"field": channel, "type": "quantitative", "scale": scale, "axis": axis}


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones: four to eight, evenly spaced as far as they go."""
    steps: Sequence[Sequence[float]] = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7))
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in steps:
        found = [float(f"{mantissa}e{ten}") for ten in decades for mantissa in mantissas]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) >= 4:
            return found[:: -(-len(found) // MOST_TICKS)]
    # Less than half a decade: logarithms hardly bend, so equal steps will do.
    rough = (high - low) / 6
    ten = 10.0 ** math.floor(math.log10(rough))
    step = next(ten * m for m in (1, 2, 5, 10) if ten * m >= rough)
    return [round(step * i, 12) for i in range(math.ceil(low / step), int(high / step) + 1)]


def _bounds(points: Sequence[Point], channel: str) -> tuple[float, float]:
    values = [float(getattr(point, channel)) for point in points]
    if channel == "y":
        values += [end for p in points for end in (p.low, p.high) if end is not None]
    return min(values), max(values)


def _datum(point: Point) -> dict[str, Any]:
    colour = f"var({point.series.colour})"
    return {
        **{"x": point.x, "y": point.y, "low": point.low, "high": point.high},
        **{"series": point.series.name, "said": point.said, "label": point.label},
        **{"stroke": colour, "fill": "var(--panel)" if point.noisy else colour},
        **{"shape": point.series.shape, "dashed": point.series.dashed, "size": point.size},
    }


def _points(
    points: Sequence[Point],
    x: dict[str, Any],
    y: dict[str, Any],
    *,
    size: float = 40,
    area: float | None = None,
) -> dict[str, Any]:
    """Marks that say their values; `area` is that of a mark of share 1."""
    values = [_datum(point) for point in points]
    for value in values:
        value["size"] = size if area is None else 14 + area * (value["size"] or 0.0)
    plain = {"scale": None, "type": "nominal"}  # the values are colours and shapes already
    return {
        "data": {"values": values},
        "mark": {
            **{"type": "point", "filled": False, "strokeWidth": 1.5, "opacity": 1},
            "fillOpacity": 1 if area is None else 0.45,
        },
        "encoding": {
            **{"x": x, "y": y, "description": {"field": "said"}},
            **{key: {"field": key, **plain} for key in ("stroke", "fill", "shape")},
            "size": {"field": "size", "type": "quantitative", "scale": None},
        },
    }


def _lines(points: Sequence[Point], x: dict[str, Any], y: dict[str, Any]) -> dict[str, Any]:
    parts = [[p for p in points if p.series.dashed is dashed] for dashed in (False, True)]
    return {
        "layer": [
            {
                "data": {"values": [_datum(point) for point in part]},
                "mark": {
                    **{"type": "line", "strokeWidth": 1.75, "aria": False},
                    **({"strokeDash": [4, 3]} if dashed else {}),
                },
                "encoding": {
                    **{"x": x, "y": y, "detail": {"field": "series"}},
                    "stroke": {"field": "stroke", "type": "nominal", "scale": None},
                },
            }
            for dashed, part in zip((False, True), parts, strict=True)
            if part
        ]
    }


def _intervals(points: Sequence[Point], x: dict[str, Any], y: dict[str, Any]) -> dict[str, Any]:
    values = [_datum(point) for point in points if point.low is not None]
    return {
        "data": {"values": values},
        "mark": {"type": "rule", "strokeWidth": 5, "opacity": 0.35, "aria": False},
        "encoding": {
            **{"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}},
            "color": {"field": "stroke", "type": "nominal", "scale": None},
        },
    }


def _guides(
    guides: Sequence[Guide], x: dict[str, Any] | None = None, *, named: bool = False
) -> list[dict[str, Any]]:
    """Dashed levels; the first name stands left, the second right, where they cannot collide."""
    levels = [guide for guide in guides if guide.kind == "y"]
    layers: list[dict[str, Any]] = []
    for place, guide in enumerate(levels):
        at = {"y": {"datum": guide.at, "type": "quantitative"}}
        colour = f"var({guide.colour})"
        rule = {"type": "rule", "color": colour, "strokeDash": [4, 3], "aria": False}
        layers.append({"data": {"values": [{}]}, "mark": rule, "encoding": at})
        if named and x is not None:
            low, high = x["scale"]["domain"]
            left = place == 0
            text = {
                **{"type": "text", "text": guide.name, "color": colour, "fontSize": 11, "dy": -6},
                **{"align": "left" if left else "right", "aria": False},
            }
            where = x | {"field": None, "datum": low if left else high}
            del where["field"]
            layers.append({"data": {"values": [{}]}, "mark": text, "encoding": at | {"x": where}})
    return layers


def alternative(panel: Panel) -> str:
    """How many values the arrow keys lead through, and of what."""
    names = list(dict.fromkeys(point.series.name for point in panel.points))
    return f"{len(panel.points)} values of {join(names)}; arrow keys lead through them."
