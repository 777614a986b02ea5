"""What a bundle's README.txt says."""

from __future__ import annotations

from collections.abc import Sequence

from nmcompile.bundle.requirements import Requirements
from nmcompile.runtime import gpu as gpus
from nmcompile.runtime.format import Artifact
from nmcompile.runtime.variants import spell_forms
from nmcompile.version import VERSION

_DRIVER = 580  # the oldest for CUDA 13: https://docs.nvidia.com/deploy/cuda-compatibility/


def readme(models: Sequence[Artifact], needs: Requirements) -> str:
    """The text for a bundle of `models`."""
    first = models[0].path.name if models else "MODEL.nmc"
    choose = "" if len(models) == 1 else f" --artifact {first}"
    python = f"python{needs.pythons[0]}"
    lines = [
        f"Models compiled by nmcompile {VERSION}, and its runtime. They need:",
        f"- Linux, {needs.machine}, with glibc {needs.glibc} and libstdc++.so.6 of "
        f"GLIBCXX_{needs.glibcxx}, or later",
        f"- CPython {' or '.join(needs.pythons)} (no other minor version) with "
        + " and ".join(needs.packages),
    ]
    if needs.gpu:
        lines.append(f"- for models of GPUs the NVIDIA driver, version {_DRIVER} or later")
    lines += [
        f"- {model.path.name}: {_machine(model)}; {spell_forms(model.manifest.forms)}"
        for model in models
    ]
    lines += [
        f"Run: {python} run.py INPUT.npz -o OUTPUT.npz{choose} (arrays by input name)",
        f"     {python} run.py --random{choose} (run.py --help says more)",
        "From Python: import sys; sys.path.insert(0, 'FOLDER'); from nmcompile import runtime",
        f"     outputs = runtime.load('FOLDER/{first}').run(inputs)",
        "Models hold native code, which loading them runs: load only those you trust.",
        "Licences are in licenses/."
        + (" CUDA's: https://docs.nvidia.com/cuda/eula/index.html" if needs.gpu else ""),
    ]
    return "\n".join(lines) + "\n"


def _machine(model: Artifact) -> str:
    target = model.manifest.target
    if capability := gpus.KINDS.get(target.kind):
        return f"NVIDIA GPU of compute capability {capability}"
    return f"CPU with {' '.join(target.cpu_features)}"
