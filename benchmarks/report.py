"""README.md's table and pictures, from what `make bench` measured.

python -m benchmarks.report
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import density
from nmcompile.bench.baselines import baseline_of, speedup
from nmcompile.bench.engines import OURS
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
PEERS = {"onnxruntime": "onnxruntime", "openvino-f32": "OpenVINO"}
"""Engines whose time does not depend on the weights, and what to call them."""

SPARSE_PEER = "deepsparse"
BUSY = "†"


def markdown(run: Run, densities: density.Result | None = None) -> str:
    """README.md's table: one line per model, pattern and number of threads; then break-evens."""
    machine = run.machine
    caches = ", ".join(f"{level} {size}" for level, size in machine.caches.items())
    peers = [name for name in PEERS if any(case.engine == name for case in run.cases)]
    sparse = any(case.engine == SPARSE_PEER for case in run.cases)
    names = " and ".join(f"{PEERS[name]} {run.versions.get(name, '')}".strip() for name in peers)
    rounds = max(len(case.samples_ms) for case in run.cases)
    lines = [
        "![Speed-up over the faster of onnxruntime and OpenVINO](benchmarks/results/speedup.png)",
        "",
        f"Batch 1, 224², float32, medians of {run.settings.rounds} to {rounds} interleaved rounds, "
        f"on {machine.cpu} ({machine.cores} cores, {caches}), against {names}, whose times do not "
        "depend on the weights. Speed-up is over the faster of the two, round by round.",
    ]
    if sparse:
        version = run.versions.get(SPARSE_PEER, "")
        lines[-1] += f" DeepSparse {version} (discontinued) runs each pattern's own model."
    if any(case.noise == "busy" for case in run.cases):
        lines[-1] += f" {BUSY} The machine was busy with other things."
    lines += [
        "",
        f"| model | threads | {' | '.join(PEERS[name] for name in peers)} | pattern |"
        f"{' DeepSparse |' if sparse else ''} nmcompile | speed-up | file |",
        f"| --- | --: |{' --: |' * len(peers)} --- |{' --: |' if sparse else ''} --: | --: | --: |",
    ]
    for (model, threads), cases in _groups(run).items():
        times = {case.engine: _ms(case) for case in cases if case.engine in peers}
        head = f"| {TITLES.get(model, model)} | {threads} |"
        head += "".join(f" {times.get(name, '')} |" for name in peers)
        for case in cases:
            if case.engine != OURS or not case.samples_ms:
                continue
            cells = [pattern_name(case)]
            if sparse:
                same = (c for c in cases if c.engine == SPARSE_PEER and c.pattern == case.pattern)
                cells.append(next(map(_ms, same), ""))
            ratio = _ratio(case, cases)
            cells += [_ms(case), f"**{ratio:.2f}x**" if ratio else "", _share(case)]
            lines.append(f"{head} {' | '.join(cells)} |")
            head = "| | |" + " |" * len(peers)
    lines += ["", "File: size of the artifact as a share of the dense float32 weights."]
    if densities is not None:
        lines += [
            "",
            "![Speed-up over density, with break-even](benchmarks/results/density.png)",
            "",
            density.caption(densities, TITLES.get(densities.model, densities.model)),
        ]
        if densities.machine["cpu"] != machine.cpu:
            lines[-1] += f" Measured on {densities.machine['cpu']}."
    return "\n".join(lines)


def picture(run: Run, path: Path) -> None:
    """Speed-up over the faster peer as bars, one panel per model; threads: the fewest measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = _groups(run)
    fewest = min(threads for _, threads in groups)
    panels = {
        model: [(case, _ratio(case, cases)) for case in cases if case.engine == OURS]
        for (model, threads), cases in groups.items()
        if threads == fewest
    }
    height = 0.9 + sum(0.3 * len(rows) + 0.35 for rows in panels.values())
    figure, axes = pyplot.subplots(
        len(panels),
        1,
        figsize=(8, height),
        sharex=True,
        squeeze=False,
        height_ratios=[len(rows) for rows in panels.values()],
        layout="constrained",
        # An own light ground, so that the text is readable on dark pages too.
        facecolor="#fafafa",
    )
    top = max(ratio or 0.0 for rows in panels.values() for _, ratio in rows)
    for panel, (model, rows) in zip(axes[:, 0], panels.items(), strict=True):
        labels = [pattern_name(case) for case, _ in rows]
        ratios = [ratio or 0.0 for _, ratio in rows]
        colours = ["#9aa5b1" if case.pattern == "dense" else "#1f6feb" for case, _ in rows]
        bars = panel.barh(labels, ratios, color=colours, height=0.7)
        # A ground of their own keeps the figures just under 1 clear of the dashed line.
        ground = {"facecolor": "#fafafa", "edgecolor": "none", "pad": 1}
        texts = [f"{ratio:.2f}x" for ratio in ratios]
        panel.bar_label(bars, texts, padding=4, fontsize=9, bbox=ground)
        panel.axvline(1.0, color="#24292f", linewidth=1, linestyle="--")
        panel.set_facecolor("#fafafa")
        panel.set_title(TITLES.get(model, model), loc="left", fontsize=10, fontweight="bold")
        panel.set_xlim(0, top * 1.12)
        panel.invert_yaxis()
        panel.spines[["top", "right"]].set_visible(False)
    # Of the figure, not of a panel: long pattern names leave a panel too little room for it.
    figure.supxlabel(
        "speed-up over the faster of onnxruntime and OpenVINO (dashed), "
        f"{fewest} thread{'s' if fewest > 1 else ''}, batch 1, float32",
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
    densities = density.read_result(density.RESULTS) if density.RESULTS.exists() else None
    if densities is not None:
        title = TITLES.get(densities.model, densities.model)
        density.picture(densities, title, density.RESULTS.with_suffix(".png"))
    readme.write_text(f"{before}{BEGIN}\n{markdown(run, densities)}\n{END}{after}")


def _groups(run: Run) -> dict[tuple[str, int], list[Case]]:
    groups: dict[tuple[str, int], list[Case]] = {}
    for case in run.cases:
        groups.setdefault((case.model, case.threads), []).append(case)
    return groups


def _ratio(case: Case, cases: Sequence[Case]) -> float | None:
    """Over the faster dense peer, also where DeepSparse is faster."""
    found = speedup(case, baseline_of(case, [c for c in cases if c.engine != SPARSE_PEER]))
    return found.value if found else None


def _ms(case: Case) -> str:
    if case.median_ms is None:
        return "failed"
    return f"{case.median_ms:.1f} ms{BUSY if case.noise == 'busy' else ''}"


def _share(case: Case) -> str:
    facts = case.artifact
    return f"{facts.nbytes / facts.dense_nbytes:.0%}" if facts and facts.dense_nbytes else ""


if __name__ == "__main__":
    update_readme()
