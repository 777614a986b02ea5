"""The result of a run: JSON that is rewritten after every job, and what follows from it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.models import COMPILED, OURS
from benchmarks.gpu.peers import CUDNN
from benchmarks.gpu.plan import BARS_BATCH

VERSION = 1
# What was asked for before anything had run: times of cuDNN's over ours, and of torch.compile's.
LAYER_BARS: Mapping[str, tuple[tuple[str, float], ...]] = {
    "sm_80": (("sparse", 1.4),),
    "sm_90a": (("sparse", 1.2), ("wgmma", 1.4)),
}
MODEL_BAR = 1.25
INSTRUCTIONS = {"dense": "mma.sync", "sparse": "mma.sp", "wgmma": "wgmma.sp"}
Row = Mapping[str, Any]


@dataclass
class Result:
    """Everything measured so far.

    machine: what the worker says of it. parts: by name, {state, seconds, rows, failures}.
    """

    kit: str
    machine: dict[str, Any] = field(default_factory=dict)
    roofs: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        """Of the GPU: letters, digits and hyphens."""
        return re.sub(r"[^a-z0-9]+", "-", str(self.machine["gpu"]).lower()).strip("-")

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "version": VERSION,
            "kit": self.kit,
            "machine": self.machine,
            "roofs": self.roofs,
            "bars": bars(self),
            "ranking": ranking(self),
            "parts": self.parts,
        }

    def save(self, path: Path) -> None:
        """Replace the file at once, so that a killed run leaves a whole one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".tmp")
        new.write_text(json.dumps(self.document(), indent=1) + "\n", encoding="utf-8")
        new.replace(path)

    def take_over(self, path: Path) -> None:
        """Keep the parts of an earlier run of the same kit on the same GPU."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            same = found["kit"] == self.kit and found["machine"]["gpu"] == self.machine["gpu"]
            if same and found["version"] == VERSION:
                self.parts, self.roofs = found["parts"], found["roofs"]
        except (OSError, ValueError, KeyError, TypeError):
            return

    def rows(self, kind: str) -> Iterator[Row]:
        """The rows of all parts whose names begin like that."""
        for name, part in self.parts.items():
            if name.startswith(kind):
                yield from part["rows"]

    def loops(self) -> list[str]:
        """Peers whose calls could not be captured in a graph."""
        peers = (peer for row in self.rows("layers") for peer in row["peers"])
        return sorted({peer["name"] for peer in peers if peer.get("how") == "loop"})

    def failures(self) -> Iterator[tuple[str, str, str]]:
        """Part, what failed, why: of jobs, of variants and of peers."""
        for name, part in self.parts.items():
            for each in part["failures"]:
                yield name, f"{each['job']}, {each['step'] or 'start'}", each["failure"]
            for row in part["rows"]:
                network = f"{row.get('model')} {row['pattern']} b{row.get('batch')}"
                owner = row.get("layer", network)
                for entry in (
                    row,
                    *row.get("variants", ()),
                    *row.get("peers", ()),
                    *row.get("contenders", ()),
                ):
                    if "failure" in entry:
                        yield name, f"{owner}, {entry['name']}", entry["failure"]
                if row.get("correct") is False and "error_norm" in row:
                    error = f"error {row['error_norm']:.3g} by norm, {row['error_max']:.3g} at most"
                    yield name, owner, error


def fastest(row: Row, method: str) -> Row | None:
    """The fastest variant of a method that gave the right result."""
    timed = [v for v in row["variants"] if v["method"] == method and "ms" in v]
    return min(timed, key=lambda v: float(v["ms"]), default=None)


def peer_ms(row: Row, name: str) -> float | None:
    """Milliseconds of a peer."""
    return next((float(p["ms"]) for p in row["peers"] if p["name"] == name and "ms" in p), None)


def contender_ms(row: Row, name: str) -> float | None:
    """Milliseconds of a whole model."""
    return next(
        (float(c["ms"]) for c in row["contenders"] if c["name"] == name and "ms" in c), None
    )


def geometric_mean(values: Iterable[float]) -> float:
    """NaN of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def bars(result: Result) -> list[dict[str, Any]]:
    """Each bar with what was found: met, missed or not measured."""
    found = [_exactness(result), _model_outputs(result)]
    for method, wanted in LAYER_BARS.get(result.machine.get("arch", ""), ()):
        for window in ("3x3", "1x1"):
            ratios = []
            for row in result.rows("layers"):
                ours, theirs = fastest(row, method), peer_ms(row, CUDNN)
                if (row["window"], row["batch"]) != (window, BARS_BATCH):
                    continue
                if ours is not None and theirs is not None:
                    ratios.append(theirs / float(ours["ms"]))
            title = f"{INSTRUCTIONS[method]} over cuDNN dense, {window}, batch {BARS_BATCH}"
            found.append(_ratio_bar(title, wanted, ratios))
    ratios = []
    for row in result.rows("compiled"):
        ours_ms, theirs = contender_ms(row, OURS), contender_ms(row, COMPILED)
        if row["batch"] == BARS_BATCH and ours_ms is not None and theirs is not None:
            ratios.append(theirs / ours_ms)
    title = f"resnet50 2:4 over torch.compile max-autotune, batch {BARS_BATCH}"
    return [*found, _ratio_bar(title, MODEL_BAR, ratios)]


def _ratio_bar(title: str, wanted: float, ratios: list[float]) -> dict[str, Any]:
    met = sum(ratio >= wanted for ratio in ratios)
    state = "not measured" if not ratios else "met" if met == len(ratios) else "missed"
    return {
        "bar": title,
        "wanted": wanted,
        "mean": geometric_mean(ratios) if ratios else None,
        "least": min(ratios, default=None),
        "most": max(ratios, default=None),
        "met_by": met,
        "of": len(ratios),
        "state": state,
    }


def _exactness(result: Result) -> dict[str, Any]:
    variants = [v for row in result.rows("layers") for v in row["variants"]]
    variants += [row for row in result.rows("patterns") if "exact" in row]
    return _count_bar("layers exact on whole numbers", [v["exact"] for v in variants])


def _model_outputs(result: Result) -> dict[str, Any]:
    rows = [row for kind in ("model", "compiled", "patterns") for row in result.rows(kind)]
    return _count_bar(
        "resnet50 within 2e-2 of float32", [row["correct"] for row in rows if "correct" in row]
    )


def _count_bar(title: str, passed: list[bool]) -> dict[str, Any]:
    state = "not measured" if not passed else "met" if all(passed) else "missed"
    return {"bar": title, "met_by": sum(passed), "of": len(passed), "state": state}


def ranking(result: Result) -> list[dict[str, Any]]:
    """How far the analytical model's favourites are from the fastest variants, by method and batch.

    loss: time of the favourite over that of the fastest, geometric mean and largest.
    """
    found: dict[tuple[str, int], list[tuple[float, str]]] = {}
    for row in result.rows("layers"):
        for method in (*INSTRUCTIONS, "all"):
            timed = [v for v in row["variants"] if "ms" in v and method in (v["method"], "all")]
            favourite = [v for v in timed if (v["chosen"] if method == "all" else v["rank"] == 0)]
            if favourite and len(timed) > 1:
                loss = favourite[0]["ms"] / min(v["ms"] for v in timed)
                found.setdefault((method, row["batch"]), []).append((loss, row["layer"]))
    return [
        {
            "method": method,
            "batch": batch,
            "layers": len(losses),
            "mean_loss": geometric_mean(loss for loss, _ in losses),
            "largest_loss": max(losses)[0],
            "worst_layer": max(losses)[1],
        }
        for (method, batch), losses in found.items()
    ]
