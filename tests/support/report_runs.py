"""Synthetic runs for the report: made-up times with a little noise, the same at every call."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgspec

from nmcompile.bench.results import Accuracy, Artifact, Case, LayerRow, Model, Roofs, Run, Settings
from nmcompile.machine.describe import Machine

T = TypeVar("T", bound=msgspec.Struct)

# Names come from users: this one is markup in HTML, in attributes and in SVG.
HOSTILE: Final = "evil\"'&<img src=http://127.0.0.1:9/x onerror=alert(1)></script><b>"
PATTERNS: Final = {
    "dense": 1.0,
    "1x16@0.5": 0.5,
    "1x16@0.25": 0.25,
    "2:4": 0.5,
    "1:4": 0.25,
    "1:16": 0.0625,
    "unstructured@0.7": 0.7,
    "unstructured@0.07": 0.07,
}
# Time at density 0 and per density, as shares of the dense time: some break even, some do not.
_COSTS: Final = {"1x16": (0.1, 0.75), "N:M": (0.1, 1.35), "unstructured": (0.2, 1.7)}
ROUNDS: Final = 12


def make_run(
    label: str = "desk",
    models: Sequence[str] = ("resnet50", "mobilenet", HOSTILE),
    threads: Sequence[int] = (1, 2),
    batches: Sequence[int] = (1, 4),
    speed: float = 1.0,
    peers: Sequence[str] = ("onnxruntime", "openvino"),
) -> Run:
    """A run of all combinations; one case is noisy and one failed."""
    noise = random.Random(label)
    cases: list[Case] = []
    for index, model in enumerate(models):
        for count in threads:
            for batch in batches:
                ms = 40.0 / (index + 1) / speed * batch**0.9 / count**0.85
                group = f"{model},{count},{batch}"
                cases += [
                    _case(group, model, peer, "", 1.0, count, batch, ms * (1.2 + 0.1 * i), noise)
                    for i, peer in enumerate(peers)
                ]
                for pattern, density in PATTERNS.items():
                    family = "N:M" if ":" in pattern else pattern.partition("@")[0]
                    still, work = _COSTS.get(family, (0.0, 1.0))
                    took = ms * (still + work * density)
                    cases.append(
                        _case(
                            *(group, model, "nmcompile", pattern, density, count, batch),
                            *(took, noise, 12 if count == batch == 1 else 0),
                        )
                    )
    cases[3] = change(cases[3], noise="noisy", noise_reason="the interval is 12 % wide")
    cases[-1] = change(cases[-1], samples_ms=[], error="out of memory: <8 GiB wanted>")
    return Run(
        label=label,
        started="2026-01-02T03:04:05Z",
        seconds=754.0,
        complete=label != "cloud",
        machine=Machine(
            cpu=f"a CPU of {label}", family_model="25/17", cores=2, features=["avx2", "avx512f"],
            caches={"L1d": "32K", "L2": "1024K", "L3": "32768K"}, memory_bytes=8 << 30,
            governor=None, gpus=[], system="Linux", python="3.11.7",
        ),
        versions={"nmcompile": "0.1.0", "onnxruntime": "1.32.0"},
        settings=Settings(
            rounds=ROUNDS, warmup=3, pinned=[0, 1], budget_s=None, memory_bytes=None
        ),
        roofs=Roofs(fma=105.0, load=58.0),
        models=[Model(name=m, source=f"{m}.onnx", digest="00", macs=10**9) for m in models],
        cases=cases,
    )  # fmt: skip


def change(thing: T, **changes: Any) -> T:
    """The case, run or machine with other fields."""
    return msgspec.structs.replace(thing, **changes)


def _case(
    group: str,
    model: str,
    engine: str,
    pattern: str,
    density: float,
    threads: int,
    batch: int,
    ms: float,
    noise: random.Random,
    layers: int = 0,
) -> Case:
    ours = engine == "nmcompile"
    return Case(
        group=group,
        model=model,
        engine=engine,
        engine_version="0.1.0" if ours else "1.32.0",
        pattern=pattern,
        density=density,
        target="avx512" if ours else "",
        dtype="float32",
        threads=threads,
        batch=batch,
        device="local",
        samples_ms=[ms * noise.lognormvariate(0, 0.02) for _ in range(ROUNDS)],
        noise="quiet",
        noise_reason="",
        accuracy=Accuracy(
            reference="onnxruntime", max_error=3e-7, same_top1=1.0, samples=500,
            top1=0.7 + 0.06 * density**0.5,
        ),
        artifact=Artifact(
            digest="ab" * 32, nbytes=int(4e7 * density), dense_nbytes=40_000_000, compile_s=12.5,
            load_ms=18.0,
        ) if ours else None,
        layers=[_layer(i, layers, pattern, density, ms, noise) for i in range(layers)],
        error=None,
    )  # fmt: skip


def _layer(
    index: int, count: int, pattern: str, density: float, total: float, noise: random.Random
) -> LayerRow:
    ms = total / count * noise.uniform(0.3, 1.7)
    kind = "load" if ":" in pattern else "fma"
    share = noise.uniform(0.35, 0.95)
    rate = share * (58.0 if kind == "load" else 105.0)
    rated = index < count - 1  # the last one is a pooling layer
    return LayerRow(
        layer=f"layer{index // 4}.{index % 4}.conv",
        symbol="conv2d_f32_nm_8x1__avx512",
        pattern=pattern if rated else None,
        density=density if rated else None,
        ms=ms,
        nonzero_gflops=rate if rated else None,
        dense_equivalent_gflops=rate / density if rated else None,
        roof=kind if rated else None,
        roof_share=share if rated else None,
        lost_ms=ms * (1 - share) if rated else None,
    )
