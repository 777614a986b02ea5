"""What a benchmark run leaves behind: one JSON file, described in RESULTS.md.

Reading checks the whole file: a missing, unknown or wrongly typed field is an error that names it.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from nmcompile.errors import InputError
from nmcompile.machine.describe import Machine, Struct
from nmcompile.runtime.files import replace_file

FORMAT: Final = "nmcompile-bench"
VERSION: Final = 2
READ: Final = (1, 2)  # a file of version 1 is one of version 2 without what may be missing
LOCAL: Final = "local"  # the device of cases that ran where the file was written


class Model(Struct, frozen=True, kw_only=True):
    """A model that was measured.

    name: unique in the file; what tables show.
    source: the path or module:factory as it was given.
    digest: sha256 of the file, in hex; of its weights for a factory.
    macs: dense multiply-accumulates of one image.
    """

    name: str
    source: str
    digest: str
    macs: int


class Accuracy(Struct, frozen=True, kw_only=True):
    """How far outputs are from the reference: the dense engine's on the same weights.

    reference: the engine that the outputs are compared with.
    max_error: the largest difference, as a share of the reference's range.
    same_top1: share of samples with the same largest output; of quantised ones, to a step.
    top1: share of labelled samples that are right, None without labels.
    samples: how many were compared.
    """

    reference: str
    max_error: float
    same_top1: float
    top1: float | None
    samples: int


class Artifact(Struct, frozen=True, kw_only=True):
    """The compiled model of a case.

    nbytes: of the file; dense_nbytes: of the dense float32 weights.
    compile_s, load_ms: time to make it, and to load it once the runtime is warm.
    """

    digest: str
    nbytes: int
    dense_nbytes: int
    compile_s: float
    load_ms: float


class LayerRow(Struct, frozen=True, kw_only=True):
    """One layer in the profile of a case; rates are None where there is no multiplication.

    roof: what bounds the kernel, a field of `Roofs`; roof_share: of it, by the non-zero work.
    lost_ms: time above what the non-zero work takes at the roof. All three are None on a GPU, whose
        roofs are not measured.
    """

    layer: str
    symbol: str
    pattern: str | None
    density: float | None
    ms: float
    nonzero_gflops: float | None
    dense_equivalent_gflops: float | None
    roof: str | None
    roof_share: float | None
    lost_ms: float | None


class Roofs(Struct, frozen=True, kw_only=True):
    """GFLOP/s of one core.

    fma, load: float32 multiply-adds on registers, and with a load from L1 each.
    vnni: sums of products of bytes on registers; None where the CPU has no such instruction.
    bf16: sums of products of bfloat16 on registers; None likewise.
    amx_int8, amx_bf16: products of tiles on registers; None likewise.
    """

    fma: float
    load: float
    vnni: float | None = None
    bf16: float | None = None
    amx_int8: float | None = None
    amx_bf16: float | None = None


class Case(Struct, frozen=True, kw_only=True):
    """One engine on one model in one setting.

    group: cases of one group took turns, round by round: sample i of each belongs to round i.
    model: the name of one of the file's models.
    engine, engine_version: who ran it; "nmcompile" is ours.
    pattern: asked of the weights ("2:4", "1x16@0.25"); "" where they stayed as they are.
    density: share of weights that are kept in the layers that are pruned, 1 for dense.
    target: what was compiled for ("avx512", "sm_80"); "" for engines that do not say.
    dtype: that the engine computes in.
    device: LOCAL, or the key and address of a remote one ("icelake at 10.0.0.7:9090"), where
        cases take no turns.
    samples_ms: every timed run of the whole batch, in order.
    noise: "quiet", "noisy" (the interval is wide: run longer) or "busy" (the machine was not free);
        noise_reason says why, and where a slow engine had fewer rounds than the others.
    error: why there are no samples, else None.
    """

    group: str
    model: str
    engine: str
    engine_version: str
    pattern: str
    density: float
    target: str
    dtype: str
    threads: int
    batch: int
    device: str
    samples_ms: list[float]
    noise: Literal["quiet", "noisy", "busy"]
    noise_reason: str
    accuracy: Accuracy | None
    artifact: Artifact | None
    layers: list[LayerRow]
    error: str | None

    @property
    def median_ms(self) -> float | None:
        """Of one run of the batch; None without samples."""
        return statistics.median(self.samples_ms) if self.samples_ms else None

    @property
    def key(self) -> tuple[str, ...]:
        """What makes two cases of two files the same case."""
        fields = (self.model, self.engine, self.pattern, self.target, self.dtype)
        return (*fields, str(self.threads), str(self.batch), self.device)


class Settings(Struct, frozen=True, kw_only=True):
    """How the run was taken.

    rounds, warmup: timed and untimed turns that were asked for.
    pinned: the cores that the engines were kept to, empty where they were not.
    budget_s, memory_bytes: limits, None where there were none.
    calibration: what models were quantised on ("random inputs", "images of val"), "" where none
        was, or where they came quantised.
    """

    rounds: int
    warmup: int
    pinned: list[int]
    budget_s: float | None
    memory_bytes: int | None
    calibration: str = ""


class Run(Struct, frozen=True, kw_only=True):
    """The file.

    label: what the user calls this run, or "".
    started: ISO 8601, UTC; seconds: how long it took.
    complete: False where it was interrupted or its time was spent: what was measured is here.
    roofs: None where the machine has no kernel to measure them, or nothing of ours was measured.
    devices, device_roofs: of the remote ones, by the name that cases have in `device`.
    """

    format: Literal["nmcompile-bench"] = FORMAT
    version: Literal[1, 2] = VERSION
    label: str
    started: str
    seconds: float
    complete: bool
    machine: Machine
    devices: dict[str, Machine] = msgspec.field(default_factory=dict)
    device_roofs: dict[str, Roofs] = msgspec.field(default_factory=dict)
    versions: dict[str, str]
    settings: Settings
    roofs: Roofs | None
    models: list[Model]
    cases: list[Case]

    def roofs_of(self, device: str) -> Roofs | None:
        """The roofs of what a case ran on, by its `device`."""
        return self.roofs if device == LOCAL else self.device_roofs.get(device)


def write_run(run: Run, path: Path) -> None:
    """Write the file, whole or not at all.

    Raises:
        ArtifactError: it cannot be written.
    """
    encoded = msgspec.json.format(msgspec.json.encode(run), indent=1)
    replace_file(path, [encoded + b"\n"])


def read_run(path: Path) -> Run:
    """Read and check a file.

    Raises:
        InputError: it cannot be read, or is not what RESULTS.md describes; names the field.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    try:
        head: Any = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise InputError(f"{path} is no JSON ({error}); expected what nmc bench writes") from error
    found = head.get("format") if isinstance(head, dict) else None
    if found != FORMAT:
        raise InputError(
            f"{path} is no result of nmc bench: expected format {FORMAT!r}, found {found!r}"
        )
    if head.get("version") not in READ:
        raise InputError(
            f"{path} has version {head.get('version')!r}, this nmcompile reads version {VERSION}; "
            "measure again, or read it with the nmcompile that wrote it"
        )
    try:
        run = msgspec.json.decode(data, type=Run)
    except msgspec.ValidationError as error:
        raise InputError(f"{path} is damaged: {error}; see RESULTS.md") from error
    names = {model.name for model in run.models}
    for case in run.cases:
        if case.model not in names:
            raise InputError(
                f"{path} is damaged: a case names the model {case.model!r}, expected one of "
                f"{', '.join(sorted(names)) or 'none'}"
            )
    return run
