"""The tables and pictures of README.md and docs/performance.md, from what `make bench` measured.

python -m benchmarks.report
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import density
from benchmarks.density import PEERS
from nmcompile.bench.baselines import groups_of, speedup
from nmcompile.bench.engines import OURS
from nmcompile.bench.precisions import Line, lines_of, our_dtypes
from nmcompile.bench.report.data import pattern_name
from nmcompile.bench.results import Case, Run, read_run

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "models.json"
README, PERFORMANCE = ROOT / "README.md", ROOT / "docs" / "performance.md"
PICTURES = "../benchmarks/results"  # from docs/performance.md
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
TITLES = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "mobilenet_v1": "MobileNetV1",
    "mobilenet_v2": "MobileNetV2",
}
SPARSE_PEERS = {"deepsparse": "DeepSparse", "deepsparse-int8": "DeepSparse"}
BUSY = "†"
COLOURS = {"float32": "#1f6feb", "int8": "#8250df"}
"""Of a precision's bars; those of dense weights are paler."""


def glance(run: Run) -> str:
    """README.md's table: speed-ups by pattern and model, of the fewest threads."""
    dtypes, lines = our_dtypes(run.cases), _lines(run)
    models = list(dict.fromkeys(line.model for line in lines))
    columns = [(model, dtype) for model in models for dtype in dtypes]
    found = {
        (line.pattern, line.model, dtype): half.ratio
        for line in lines
        for dtype, half in line.halves.items()
    }
    titles = [TITLES.get(model, model) for model in models]
    if len(dtypes) > 1:
        titles = [f"{TITLES.get(model, model)} {dtype}" for model, dtype in columns]
    rows = [["weights", *titles], ["---", *["--:"] * len(columns)]]
    for pattern, line in {line.pattern: line for line in lines}.items():
        ratios = [found.get((pattern, model, dtype)) for model, dtype in columns]
        rows.append([pattern_name(line.any), *map(_times, ratios)])
    threads = lines[0].threads
    said = (
        f"Times as fast as the faster of {_names(run)} with all weights: batch 1, 224², "
        f"{' and '.join(dtypes)}, {_counted(threads)}, {run.machine.cpu}, measured on "
        f"{run.started[:10]}. [Times, threads, break-even densities](docs/performance.md)."
    )
    return "\n".join([*_rows(rows), "", said])


def markdown(run: Run, densities: Sequence[density.Result] = ()) -> str:
    """The long tables of docs/performance.md, of each precision and number of threads."""
    machine = run.machine
    caches = ", ".join(f"{level} {size}" for level, size in machine.caches.items())
    dtypes, lines = our_dtypes(run.cases), _all_lines(run)
    rounds = max(len(case.samples_ms) for case in run.cases)
    said = [
        f"Batch 1, 224², medians of {run.settings.rounds} to {rounds} interleaved rounds, on "
        f"{machine.cpu} ({machine.cores} cores, {caches}), measured on {run.started[:10]}. "
        f"Speed-up is over the faster of {_names(run)} in the same precision with all weights, "
        "round by round: their times do not depend on the weights."
    ]
    if run.settings.calibration:
        said.append(f"int8: the same models, quantised on {run.settings.calibration}.")
    said += [*_scaling(run, dtypes, _lines(run)[0].threads), *_sparse_peers(run)]
    if any(case.noise == "busy" for case in run.cases):
        said.append(f"{BUSY} The machine was busy with other things.")
    text = [
        f"![Speed-up over the fastest dense engine]({PICTURES}/speedup.png)",
        "",
        " ".join(said),
        "",
        "File: size of the artifact as a share of the dense float32 weights. `nmc bench report` "
        "has every engine, thread and round.",
    ]
    for dtype in dtypes:
        for threads in sorted({line.threads for line in lines}):
            chosen = [line for line in lines if line.threads == threads and dtype in line.halves]
            if chosen:
                head = f"### {dtype}, {_counted(threads)}"
                text += ["", head, "", *table(run.cases, chosen, dtype, dtypes[0])]
    for result in densities:
        text += [
            "",
            f"### Break-even in {result.dtype}",
            "",
            f"![Speed-up over density, with break-even]({PICTURES}/{_name(result)}.png)",
            "",
            density.caption(result, TITLES.get(result.model, result.model)),
        ]
        if result.machine["cpu"] != machine.cpu:
            text[-1] += f" Measured on {result.machine['cpu']}."
    return "\n".join(text)


def table(cases: Sequence[Case], lines: Sequence[Line], dtype: str, first: str) -> list[str]:
    """A table's lines: one precision, the other engines beside ours, on one number of threads.

    Args:
        cases: of the whole run.
        lines: of this precision and number of threads.
        dtype: the precision.
        first: the one that others are told against: that of the first table.
    """
    here = [
        case
        for case in cases
        if (case.threads, case.dtype) == (lines[0].threads, dtype) and case.samples_ms
    ]
    found = {(case.model, case.engine, case.pattern): case for case in here}
    engines = {case.engine for case in here}
    dense = [name for name in PEERS if name in engines]
    sparse = [name for name in SPARSE_PEERS if name in engines]
    heads = ["model", "pattern", *map(PEERS.__getitem__, dense)]
    heads += [*map(SPARSE_PEERS.__getitem__, sparse), "nmcompile", "speed-up", "file"]
    if dtype != first:
        heads.append(f"over {first}")
    rows, shown = [heads, ["---", "---", *["--:"] * (len(heads) - 2)]], ""
    for line in lines:
        half, model = line.halves[dtype], "" if line.model == shown else line.model
        shown = line.model
        cells = [TITLES.get(model, model), pattern_name(line.any)]
        for name in dense:
            peer = found.get((model, name, "")) or found.get((model, name, "dense"))
            cells.append(_ms(peer) if peer else "")
        for name in sparse:
            peer = found.get((line.model, name, line.pattern))
            cells.append(_ms(peer) if peer else "")
        cells += [_ms(half.ours), _times(half.ratio), _share(half.ours)]
        if dtype != first:
            gain = line.gain(dtype, first)
            cells.append(f"{gain:.2f}x" if gain else "")
        rows.append(cells)
    return _rows(rows)


def picture(run: Run, path: Path) -> None:
    """Speed-up over the fastest dense engine as bars, one panel per model, of a table's lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    dtypes, lines = our_dtypes(run.cases), _lines(run)
    panels: dict[str, list[Line]] = {}
    for line in lines:
        panels.setdefault(line.model, []).append(line)
    step = 0.17 * len(dtypes) + 0.1
    figure, axes = pyplot.subplots(
        len(panels),
        1,
        figsize=(8, 0.9 + step * len(lines) + 0.35 * len(panels)),
        sharex=True,
        squeeze=False,
        height_ratios=[len(rows) for rows in panels.values()],
        layout="constrained",
        # An own light ground, so that the text is readable on dark pages too.
        facecolor="#fafafa",
    )
    ratios = [half.ratio or 0.0 for line in lines for half in line.halves.values()]
    height = 0.8 / len(dtypes)
    for panel, (model, rows) in zip(axes[:, 0], panels.items(), strict=True):
        for place, dtype in enumerate(dtypes):
            at = [y + (place - (len(dtypes) - 1) / 2) * height for y in range(len(rows))]
            halves = [line.halves.get(dtype) for line in rows]
            values = [(half.ratio if half else None) or 0.0 for half in halves]
            bars = panel.barh(
                *(at, values),
                height=height * 0.92,
                color=COLOURS.get(dtype, "#0a8f6c"),
                label=dtype,
            )
            for bar, line in zip(bars, rows, strict=True):
                bar.set_alpha(0.45 if line.pattern == "dense" else 1.0)
            # A ground of their own keeps the figures just under 1 clear of the dashed line.
            ground = {"facecolor": "#fafafa", "edgecolor": "none", "pad": 1}
            texts = [f"{value:.2f}x" if value else "" for value in values]
            panel.bar_label(bars, texts, padding=4, fontsize=8, bbox=ground)
        panel.set_yticks(range(len(rows)), [pattern_name(line.any) for line in rows])
        panel.axvline(1.0, color="#24292f", linewidth=1, linestyle="--")
        panel.set_facecolor("#fafafa")
        panel.set_title(TITLES.get(model, model), loc="left", fontsize=10, fontweight="bold")
        panel.set_xlim(0, max(*ratios, 1.0) * 1.12)
        panel.invert_yaxis()
        panel.spines[["top", "right"]].set_visible(False)
    if len(dtypes) > 1:
        handles = [Patch(color=COLOURS.get(dtype, "#0a8f6c")) for dtype in dtypes]
        axes[0, 0].legend(handles, dtypes, loc="lower right", frameon=False, fontsize=9)
    threads = lines[0].threads
    # Of the figure, not of a panel: long pattern names leave a panel too little room for it.
    figure.supxlabel(
        "speed-up over the fastest dense engine of the same precision (dashed), "
        f"{_counted(threads)}, batch 1",
        fontsize=10,
    )
    figure.savefig(path, dpi=144, facecolor=figure.get_facecolor())
    pyplot.close(figure)


def update(results: Path = RESULTS, readme: Path = README, performance: Path = PERFORMANCE) -> None:
    """Rewrite what stands between the two marks of both files, and the pictures.

    Densities are in it where bench_density has left its JSON.

    Raises:
        ValueError: the marks are missing.
        InputError: the results cannot be read.
    """
    run = read_run(results)
    paths = [path for path in map(density.path_of, density.DTYPES) if path.exists()]
    densities = [density.read_result(path) for path in paths]
    written = {
        path: _between_marks(path, text)
        for path, text in ((readme, glance(run)), (performance, markdown(run, densities)))
    }
    picture(run, results.with_name("speedup.png"))
    for path, result in zip(paths, densities, strict=True):
        title = TITLES.get(result.model, result.model)
        density.picture(result, title, path.with_suffix(".png"))
    for path, text in written.items():
        path.write_text(text)


def _between_marks(path: Path, text: str) -> str:
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path}: expected the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def _all_lines(run: Run) -> list[Line]:
    """Held against engines whose times do not depend on the weights."""
    return lines_of([case for case in run.cases if case.engine not in SPARSE_PEERS])


def _lines(run: Run) -> list[Line]:
    """Of the fewest threads that were measured."""
    lines = _all_lines(run)
    fewest = min(line.threads for line in lines)
    return [line for line in lines if line.threads == fewest]


def _scaling(run: Run, dtypes: Sequence[str], fewest: int) -> Iterator[str]:
    """How much faster ours is on more threads."""
    lines = {(line.model, line.pattern, line.threads): line for line in _all_lines(run)}
    for threads in sorted({line.threads for line in lines.values()} - {fewest}):
        gains = []
        for dtype in dtypes:
            pairs = [
                (found.halves[dtype].ours.median_ms, line.halves[dtype].ours.median_ms)
                for (model, pattern, count), line in lines.items()
                if count == threads
                and dtype in line.halves
                and (found := lines.get((model, pattern, fewest))) is not None
                and dtype in found.halves
            ]
            ratios = [slow / fast for slow, fast in pairs if slow and fast]
            if ratios:
                gains.append(f"{statistics.geometric_mean(ratios):.2f}x as fast in {dtype}")
        if gains:
            yield f"On {threads} threads nmcompile is {' and '.join(gains)} (geometric means)."


def _sparse_peers(run: Run) -> Iterator[str]:
    """How ours compares with an engine that gains from zeros, on the same pattern."""
    for name, title in SPARSE_PEERS.items():
        ratios, dtype = [], ""
        for group in groups_of(run.cases).values():
            theirs = {case.pattern: case for case in group if case.engine == name}
            for case in group:
                peer = theirs.get(case.pattern)
                if case.engine == OURS and peer is not None and case.dtype == peer.dtype:
                    found, dtype = speedup(case, peer), case.dtype
                    ratios += [found.value] if found else []
        if ratios:
            yield (
                f"{title} {run.versions.get(name, '')} (discontinued) runs each pattern's own "
                f"model, in {dtype}: nmcompile is {min(ratios):.2f}x to {max(ratios):.2f}x as fast."
            )


def _has(run: Run, engine: str) -> bool:
    return any(case.engine == engine and case.samples_ms for case in run.cases)


def _names(run: Run) -> str:
    """The engines whose times do not depend on the weights, with their versions."""
    versions = {PEERS[name]: run.versions.get(name, "") for name in PEERS if _has(run, name)}
    return " and ".join(f"{name} {version}".strip() for name, version in versions.items())


def _counted(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"


def _rows(rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in rows]


def _name(result: density.Result) -> str:
    return density.path_of(result.dtype).stem


def _times(ratio: float | None) -> str:
    return f"**{ratio:.2f}x**" if ratio else ""


def _ms(case: Case) -> str:
    if case.median_ms is None:
        return "failed"
    return f"{case.median_ms:.1f} ms{BUSY if case.noise == 'busy' else ''}"


def _share(case: Case) -> str:
    facts = case.artifact
    return f"{facts.nbytes / facts.dense_nbytes:.0%}" if facts and facts.dense_nbytes else ""


if __name__ == "__main__":
    update()
