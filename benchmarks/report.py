"""README.md's table and pictures, from what `make bench` measured.

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


def markdown(run: Run, densities: Sequence[density.Result] = ()) -> str:
    """README.md's table: one line per model and pattern, precisions side by side; break-evens."""
    machine = run.machine
    caches = ", ".join(f"{level} {size}" for level, size in machine.caches.items())
    dtypes, lines = our_dtypes(run.cases), _lines(run)
    threads = lines[0].threads
    versions = {PEERS[name]: run.versions.get(name, "") for name in PEERS if _has(run, name)}
    names = " and ".join(f"{name} {version}".strip() for name, version in versions.items())
    rounds = max(len(case.samples_ms) for case in run.cases)
    said = [
        f"Batch 1, 224², {threads} thread{'s' * (threads > 1)}, medians of {run.settings.rounds} "
        f"to {rounds} interleaved rounds, on {machine.cpu} ({machine.cores} cores, {caches}). "
        f"Speed-up is over the faster of {names} in the same precision with all weights, round by "
        "round: their times do not depend on the weights."
    ]
    if run.settings.calibration:
        said.append(f"int8: the same models, quantised on {run.settings.calibration}.")
    said += [*_scaling(run, dtypes, threads), *_sparse_peers(run)]
    if any(case.noise == "busy" for case in run.cases):
        said.append(f"{BUSY} The machine was busy with other things.")
    text = [
        "![Speed-up over the fastest dense engine](benchmarks/results/speedup.png)",
        "",
        " ".join(said),
        "",
        *table(lines, dtypes),
        "",
        "Dense: the fastest other engine. File: size of the artifact as a share of the dense "
        "float32 weights. `nmc bench report` has every engine, thread and round.",
    ]
    for result in densities:
        text += [
            "",
            f"![Speed-up over density, with break-even](benchmarks/results/{_name(result)}.png)",
            "",
            density.caption(result, TITLES.get(result.model, result.model)),
        ]
        if result.machine["cpu"] != machine.cpu:
            text[-1] += f" Measured on {result.machine['cpu']}."
    return "\n".join(text)


def table(lines: Sequence[Line], dtypes: Sequence[str]) -> list[str]:
    """The table's lines: of each precision the fastest dense engine, ours and their ratio."""
    heads, marks = ["model", "pattern"], ["---", "---"]
    for dtype in dtypes:
        heads += [f"dense {dtype}", f"nmcompile {dtype}", "speed-up", "file"]
        marks += ["--:"] * 4
    if len(dtypes) > 1:
        heads.append(f"{dtypes[1]} over {dtypes[0]}")
        marks.append("--:")
    rows, shown = [heads, marks], ""
    for line in lines:
        first = line.model != shown
        shown = line.model
        cells = [TITLES.get(line.model, line.model) if first else "", pattern_name(line.any)]
        for dtype in dtypes:
            half = line.halves.get(dtype)
            if half is None:
                cells += [""] * 4
                continue
            peer = half.peer
            dense = f"{_ms(peer)} {PEERS.get(peer.engine, peer.engine)}" if peer else ""
            cells += [dense if first else "", _ms(half.ours), _times(half.ratio), _share(half.ours)]
        if len(dtypes) > 1:
            gain = line.gain(dtypes[1], dtypes[0])
            cells.append(f"{gain:.2f}x" if gain else "")
        rows.append(cells)
    return [f"| {' | '.join(cells)} |" for cells in rows]


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
        f"{threads} thread{'s' if threads > 1 else ''}, batch 1",
        fontsize=10,
    )
    figure.savefig(path, dpi=144, facecolor=figure.get_facecolor())
    pyplot.close(figure)


def update_readme(results: Path = RESULTS, readme: Path = ROOT / "README.md") -> None:
    """Rewrite what stands between the two marks of README.md, and the pictures.

    Densities are in it where bench_density has left its JSON.

    Raises:
        ValueError: the marks are missing.
        InputError: the results cannot be read.
    """
    run = read_run(results)
    text = readme.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme}: expected the marks {BEGIN} and {END}")
    picture(run, results.with_name("speedup.png"))
    paths = [path for path in map(density.path_of, density.DTYPES) if path.exists()]
    densities = [density.read_result(path) for path in paths]
    for path, result in zip(paths, densities, strict=True):
        title = TITLES.get(result.model, result.model)
        density.picture(result, title, path.with_suffix(".png"))
    readme.write_text(f"{before}{BEGIN}\n{markdown(run, densities)}\n{END}{after}")


def _lines(run: Run) -> list[Line]:
    """Of the fewest threads that were measured."""
    lines = lines_of(run.cases)
    fewest = min(line.threads for line in lines)
    return [line for line in lines if line.threads == fewest]


def _scaling(run: Run, dtypes: Sequence[str], fewest: int) -> Iterator[str]:
    """How much faster ours is on more threads."""
    lines = {(line.model, line.pattern, line.threads): line for line in lines_of(run.cases)}
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
    update_readme()
