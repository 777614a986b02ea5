"""Turns the JSON of bench_models into tables, and into README.md's table and pictures.

python -m benchmarks.report [benchmarks/results/models.json]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import density

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "models.json"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
TITLES = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "mobilenet_v1": "MobileNetV1",
    "mobilenet_v2": "MobileNetV2",
}


def results_table(result: Mapping[str, Any]) -> Table:
    """The rows of one benchmark for the terminal."""
    machine = result["machine"]
    cpu = f"{machine['cpu']} ({machine['cores']} cores)"
    batch = result["settings"]["batch"]
    title = f"batch {batch}, float32, {cpu}; ratio: fastest dense peer / this"
    table = Table(title=title)
    for name in ("model", "engine", "pattern"):
        table.add_column(name)
    for name in ("threads", "median ms", "min ms", "ratio", "error", "compile s", "load ms"):
        table.add_column(name, justify="right")
    table.add_column("artifact / dense weights", justify="right")
    last = None
    for row in result["rows"]:
        if last is not None and (row["model"], row["threads"]) != last:
            table.add_section()
        last = (row["model"], row["threads"])
        table.add_row(
            row["model"],
            row["engine"],
            row["pattern"],
            str(row["threads"]),
            f"{row['median_ms']:.2f}",
            f"{row['min_ms']:.2f}",
            f"{row['ratio']:.2f}x",
            _text(row["error"], "{:.0e}"),
            _text(row["compile_s"], "{:.1f}"),
            _text(row["load_ms"], "{:.0f}"),
            _share(row),
        )
    return table


def markdown(result: Mapping[str, Any], densities: density.Result | None = None) -> str:
    """README.md's table: one line per model, pattern and number of threads; then break-evens."""
    machine, settings = result["machine"], result["settings"]
    versions = machine["versions"]
    lines = [
        "![Speed-up over the faster of onnxruntime and OpenVINO](benchmarks/results/speedup.png)",
        "",
        f"Batch {settings['batch']}, {settings['size']}², float32, medians of "
        f"{settings['rounds']} interleaved rounds, on {machine['cpu']} ({machine['cores']} cores, "
        f"{', '.join(f'{k} {v}' for k, v in machine['caches'].items())}), against onnxruntime "
        f"{versions['onnxruntime']} and OpenVINO {versions['openvino']}, whose times do not depend "
        "on the weights. Speed-up is over the faster of the two.",
    ]
    sparse = settings.get("deepsparse")
    if sparse:
        lines[-1] += f" DeepSparse {sparse} (discontinued) runs each pattern's own model."
    cores = result.get("cores")
    if cores and cores["rounds"]:
        lines[-1] += " On two threads, rounds wait until both cores share a cache"
        lost = f"; {cores['apart']} of {cores['rounds']} could not"
        lines[-1] += f"{lost if cores['apart'] else ''}."
    lines += [
        "",
        "| model | threads | onnxruntime | OpenVINO | pattern |"
        f"{' DeepSparse |' if sparse else ''} nmcompile | speed-up | file |",
        f"| --- | --: | --: | --: | --- |{' --: |' if sparse else ''} --: | --: | --: |",
    ]
    for (model, threads), rows in _groups(result["rows"]).items():
        times = {(row["engine"], row["pattern"]): row["median_ms"] for row in rows}
        head = (
            f"| {TITLES.get(model, model)} | {threads} | {times['onnxruntime', '']:.1f} ms "
            f"| {times['openvino', '']:.1f} ms |"
        )
        for row in rows:
            if row["engine"] != "nmcompile":
                continue
            peer = (
                f" {_text(times.get(('deepsparse', row['pattern'])), '{:.1f} ms')} |"
                if sparse
                else ""
            )
            lines.append(
                f"{head} {_pattern(row['pattern'])} |{peer} {row['median_ms']:.1f} ms "
                f"| **{row['ratio']:.2f}x** | {_share(row)} |"
            )
            head = "| | | | |"
    lines += ["", "File: size of the artifact as a share of the dense float32 weights."]
    if densities is not None:
        lines += [
            "",
            "![Speed-up over density, with break-even](benchmarks/results/density.png)",
            "",
            density.caption(densities, TITLES.get(densities.model, densities.model)),
        ]
        if densities.machine["cpu"] != machine["cpu"]:
            lines[-1] += f" Measured on {densities.machine['cpu']}."
    return "\n".join(lines)


def picture(result: Mapping[str, Any], path: Path) -> None:
    """Speed-up over the faster peer as bars, one panel per model; threads: the fewest measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    fewest = min(row["threads"] for row in result["rows"])
    groups = {
        model: [row for row in rows if row["engine"] == "nmcompile"]
        for (model, threads), rows in _groups(result["rows"]).items()
        if threads == fewest
    }
    height = 0.9 + sum(0.3 * len(rows) + 0.35 for rows in groups.values())
    figure, panels = pyplot.subplots(
        len(groups),
        1,
        figsize=(8, height),
        sharex=True,
        squeeze=False,
        height_ratios=[len(rows) for rows in groups.values()],
        layout="constrained",
        # An own light ground, so that the text is readable on dark pages too.
        facecolor="#fafafa",
    )
    top = max(row["ratio"] for rows in groups.values() for row in rows)
    for panel, (model, rows) in zip(panels[:, 0], groups.items(), strict=True):
        labels = [_pattern(row["pattern"]) for row in rows]
        ratios = [row["ratio"] for row in rows]
        colours = ["#9aa5b1" if row["pattern"] == "dense" else "#1f6feb" for row in rows]
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
        f"{fewest} thread{'s' if fewest > 1 else ''}, "
        f"batch {result['settings']['batch']}, float32",
        fontsize=10,
    )
    figure.savefig(path, dpi=144, facecolor=figure.get_facecolor())
    pyplot.close(figure)


def update_readme(results: Path = RESULTS, readme: Path = ROOT / "README.md") -> None:
    """Rewrite what stands between the two marks of README.md, and the pictures.

    Densities are in it where bench_density has left its JSON.

    Raises:
        ValueError: the marks are missing.
    """
    result = json.loads(results.read_text())
    text = readme.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme}: expected the marks {BEGIN} and {END}")
    picture(result, RESULTS.with_name("speedup.png"))
    densities = density.read_result(density.RESULTS) if density.RESULTS.exists() else None
    if densities is not None:
        title = TITLES.get(densities.model, densities.model)
        density.picture(densities, title, density.RESULTS.with_suffix(".png"))
    readme.write_text(f"{before}{BEGIN}\n{markdown(result, densities)}\n{END}{after}")


def _groups(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], list[Mapping[str, Any]]]:
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["threads"]), []).append(row)
    return groups


def _pattern(spec: str) -> str:
    """ "1x16@0.25" as people say it."""
    name, _, density = spec.partition("@")
    return f"{name}, {float(density):.0%} kept" if density else name


def _share(row: Mapping[str, Any]) -> str:
    if not row["artifact_bytes"] or not row["dense_bytes"]:
        return ""
    return f"{row['artifact_bytes'] / row['dense_bytes']:.0%}"


def _text(value: float | None, template: str) -> str:
    return "" if value is None else template.format(value)


if __name__ == "__main__":
    update_readme(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS)
