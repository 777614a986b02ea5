"""The machines that nmcompile compiles for, one row each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nmcompile.errors import DeviceError, TargetError
from nmcompile.linking import find_linker
from nmcompile.wording import way


@dataclass(frozen=True)
class Target:
    """One target.

    name: as in `--target`.
    llvm_cpu: what LLVM generates code for: the oldest CPU that has the features; "" for GPUs.
    cpu_features: flags of /proc/cpuinfo that the machine must show; written to the artifact.
    dtype: element type of weights and activations.
    arch: of a GPU, as nvcc calls it; "" for CPUs.
    llvm_features: what LLVM may use beyond `llvm_cpu`, each of them in `cpu_features`.
    integers: whether quantised operators run on integers.
    bfloat16: whether models can be compiled in bfloat16.
    """

    name: str
    description: str
    llvm_cpu: str
    cpu_features: tuple[str, ...]
    dtype: str
    arch: str = ""
    llvm_features: str = ""
    integers: bool = False
    bfloat16: bool = False

    @property
    def machine(self) -> str:
        """What the artifact's code is for: the architecture of the GPU, or the CPU."""
        return self.arch or self.llvm_cpu + self.llvm_features

    @property
    def llvm_options(self) -> dict[str, Any]:
        """What TVM calls the target of a CPU."""
        features = {"mattr": self.llvm_features.split(",")} if self.llvm_features else {}
        return {"kind": "llvm", "mcpu": self.llvm_cpu, **features}


_AVX512 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "fma", "avx2", "bmi2")
_VNNI, _LLVM_VNNI = (*_AVX512, "avx512_vnni", "avx512vbmi"), "+avx512vnni,+avx512vbmi"
_BF16, _LLVM_BF16 = (*_VNNI, "avx512_bf16"), f"{_LLVM_VNNI},+avx512bf16"

TARGETS: tuple[Target, ...] = (
    Target(
        "avx512",
        "x86-64 with AVX-512 (Skylake-SP, Zen 4 and later), float32",
        # x86-64-v4 in LLVM prefers 256-bit vectors only where a CPU model says so.
        "x86-64-v4",
        _AVX512,
        "float32",
    ),
    Target(
        "avx512_vnni",
        "x86-64 with AVX-512 VNNI (Ice Lake-SP, Zen 4 and later), int8 where a model is quantised",
        "x86-64-v4",
        _VNNI,
        "float32",
        llvm_features=_LLVM_VNNI,
        integers=True,
    ),
    Target(
        "avx512_bf16",
        "x86-64 with AVX-512 BF16 (Zen 4 and later), int8 where a model is quantised, or bfloat16",
        "x86-64-v4",
        _BF16,
        "float32",
        llvm_features=_LLVM_BF16,
        integers=True,
        bfloat16=True,
    ),
    Target(
        "avx512_amx",
        "x86-64 with AMX (Sapphire Rapids and later), int8 where a model is quantised, or bfloat16",
        "x86-64-v4",
        (*_BF16, "amx_tile", "amx_int8", "amx_bf16"),
        "float32",
        llvm_features=f"{_LLVM_BF16},+amx-tile,+amx-int8,+amx-bf16",
        integers=True,
        bfloat16=True,
    ),
    Target(
        "sm_80",
        "NVIDIA GPUs of compute capability 8.0 (A100, A30), sparse tensor cores, float16",
        "",
        (),
        "float16",
        "sm_80",
    ),
    Target(
        "sm_86",
        "NVIDIA GPUs of compute capability 8.6 (A10, RTX 30xx), sparse tensor cores, float16",
        "",
        (),
        "float16",
        "sm_86",
    ),
    Target(
        "sm_89",
        "NVIDIA GPUs of compute capability 8.9 (L4, L40, RTX 40xx), sparse tensor cores, float16",
        "",
        (),
        "float16",
        "sm_89",
    ),
    Target(
        "sm_90a",
        "NVIDIA GPUs of compute capability 9.0 (H100, H200), sparse tensor cores, float16",
        "",
        (),
        "float16",
        "sm_90a",
    ),
)


BF16 = "bf16"
"""The precision of models that are rounded to bfloat16, for targets that say so."""

CUDA = "cuda"
"""Another name for the target of the GPU at hand."""


def find_target(name: str) -> Target:
    """The row of one target; "cuda" is that of this machine's first GPU.

    Raises:
        TargetError: no such target.
        DeviceError: "cuda" on a machine without a GPU, or with one that no target is for.
    """
    if name == CUDA:
        name = _target_here()
    for target in TARGETS:
        if target.name == name:
            return target
    names = ", ".join((*(target.name for target in TARGETS), CUDA))
    raise TargetError(f"target {name!r} is unknown; expected one of: {names} (see `nmc targets`)")


def _target_here() -> str:
    from nmcompile.runtime import gpu

    named = ", ".join(f"{kind} for {wanted}" for kind, wanted in gpu.KINDS.items())
    way_out = f"name the GPU that the model is for, {way('--target', 'target')} {named}"
    try:
        here = gpu.host()
    except DeviceError as error:
        raise DeviceError(
            f"target {CUDA!r} is the GPU of this machine, and there is none: {error}; or {way_out}"
        ) from error
    kind = gpu.kind_of(here)
    if kind is None:
        raise DeviceError(
            f"target {CUDA!r}: no kernels for {here.name} of compute capability "
            f"{here.major}.{here.minor}: {way_out}"
        )
    return kind


def check_toolchain(target: Target) -> None:
    """Make sure that the code can be compiled and linked.

    Raises:
        TargetError: there is no linker, or no nvcc for a GPU.
    """
    if target.arch:
        from nmcompile.kernels.cuda.build import find_nvcc

        find_nvcc()
    find_linker()
