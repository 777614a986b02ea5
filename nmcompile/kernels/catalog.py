"""Every kernel, one row each: dispatch, inspection, tests and benchmarks all read this table.

The first row of an operator that takes a problem lowers it, so order is preference. Why a row does
not take it is a sentence that reaches the user through `nmc inspect`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nmcompile.errors import TargetError
from nmcompile.kernels.avx512 import rows as avx512
from nmcompile.kernels.avx512 import verdicts
from nmcompile.kernels.problem import MADE_FOR, Candidate, Lowered, Problem
from nmcompile.kernels.sparse_tensor_core.rows import TensorCoreConv

RoofKind = Literal["fma", "load"]
OpKind = Literal["conv2d", "linear", "pool2d", "global_average"]


@dataclass(frozen=True)
class Kernel:
    """One row.

    name: the specification: operator, element type, method, instruction set.
    sparse: whether its time falls with the number of non-zero weights.
    refuse: the reason why it cannot run a problem, or None.
    decline: the reason why, by the analytical model, another row will be faster, or None; the
        tuner measures rows that decline too.
    configs: tile sizes that it can run a problem with, the best by the analytical model first;
        empty where there is nothing to choose.
    emit: packs the weights for the tile sizes of one of `configs`; use `Kernel.lower`.
    roof: what bounds its rate: multiply-adds, or a load from L1 for each of them.
    """

    name: str
    op: OpKind
    target: str
    dtype: str
    sparse: bool
    refuse: Callable[[Problem], str | None]
    decline: Callable[[Problem], str | None]
    configs: Callable[[Problem], Sequence[Candidate]]
    emit: Callable[[str, Problem, Any], Lowered]
    roof: RoofKind = "fma"

    def lower(self, problem: Problem, config: Any = None) -> Lowered:
        """The function and the packed weights; without `config`, with the model's favourite."""
        if config is None:
            config = next((candidate.config for candidate in self.configs(problem)), None)
        return self.emit(self.name, problem, config)


def _tensor_core(name: str, conv: TensorCoreConv) -> Kernel:
    return Kernel(
        f"{name}__{conv.arch}", "conv2d", conv.arch, "float16", conv.method != "dense",
        conv.refuse, conv.decline, conv.configs, conv.lower,
    )  # fmt: skip


_WGMMA = TensorCoreConv("sm_90a", "wgmma", ("sparse", "dense"))
CATALOG: tuple[Kernel, ...] = (
    Kernel(
        "conv2d_f32_depthwise__avx512", "conv2d", "avx512", "float32", False,
        verdicts.refuse_depthwise, verdicts.accept, avx512.one_config, avx512.lower_depthwise,
    ),
    Kernel(
        "conv2d_f32_winograd_one_by_n__avx512", "conv2d", "avx512", "float32", True,
        verdicts.refuse_winograd_one_by_n, verdicts.decline_winograd_one_by_n,
        avx512.winograd_one_by_n_configs, avx512.lower_winograd,
    ),
    Kernel(
        "conv2d_f32_one_by_n__avx512", "conv2d", "avx512", "float32", True,
        verdicts.refuse_one_by_n, verdicts.decline_one_by_n,
        avx512.one_by_n_configs, avx512.lower_panel,
    ),
    Kernel(
        "conv2d_f32_nm__avx512", "conv2d", "avx512", "float32", True,
        verdicts.refuse_nm, verdicts.decline_nm, avx512.nm_configs, avx512.lower_panel, "load",
    ),
    Kernel(
        "conv2d_f32_winograd__avx512", "conv2d", "avx512", "float32", False,
        verdicts.refuse_winograd, verdicts.decline_winograd,
        avx512.winograd_dense_configs, avx512.lower_winograd,
    ),
    Kernel(
        "conv2d_f32_dense__avx512", "conv2d", "avx512", "float32", False,
        verdicts.accept, verdicts.accept, avx512.dense_configs, avx512.lower_panel,
    ),
    Kernel(
        "linear_f32_dense__avx512", "linear", "avx512", "float32", False,
        verdicts.accept, verdicts.accept, avx512.one_config, avx512.lower_linear,
    ),
    Kernel(
        "pool2d_f32__avx512", "pool2d", "avx512", "float32", False,
        verdicts.accept, verdicts.accept, avx512.one_config, avx512.lower_pool,
    ),
    Kernel(
        "global_average_f32__avx512", "global_average", "avx512", "float32", False,
        verdicts.accept, verdicts.accept, avx512.one_config, avx512.lower_global_average,
    ),
    _tensor_core("conv2d_f16_two_four", TensorCoreConv("sm_80", "sparse", ("dense",))),
    _tensor_core("conv2d_f16_dense", TensorCoreConv("sm_80", "dense")),
    _tensor_core("conv2d_f16_two_four_wgmma", _WGMMA),
    _tensor_core("conv2d_f16_two_four", TensorCoreConv("sm_90a", "sparse", ("dense",))),
    _tensor_core("conv2d_f16_dense", TensorCoreConv("sm_90a", "dense")),
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """The kernel of one problem, its tiles (None: by the model), why other rows do not take it."""

    kernel: Kernel
    refusals: Mapping[str, str] = field(default_factory=dict)
    config: Any = None

    @property
    def reason(self) -> str:
        """Why no kernel that skips zeros was taken; "" if one was, or if there is none."""
        own = [text for text in self.refusals.values() if not text.startswith(MADE_FOR)]
        return own[-1] if own and not self.kernel.sparse else ""


def find_row(symbol: str) -> Kernel | None:
    """The row of a lowered function, None for one of TVM's: names start with the row's."""
    return next((row for row in CATALOG if symbol.startswith(row.name)), None)


def rows_for(op: OpKind, target: str, dtype: str) -> list[Kernel]:
    """The rows of one operator, in order of preference."""
    return [row for row in CATALOG if (row.op, row.target, row.dtype) == (op, target, dtype)]


def choose(op: OpKind, target: str, problem: Problem) -> Choice:
    """The first kernel of the target that neither refuses nor declines the problem.

    Raises:
        TargetError: no kernel of the target computes this operator and element type.
    """
    refusals: dict[str, str] = {}
    for kernel in rows_for(op, target, problem.dtype):
        reason = kernel.refuse(problem) or kernel.decline(problem)
        if reason is None:
            return Choice(kernel, refusals)
        refusals[kernel.name] = reason
    raise TargetError(f"target {target} has no kernel for {op} on {problem.dtype}")
