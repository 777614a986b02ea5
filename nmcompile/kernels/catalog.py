"""Every kernel, one row each: dispatch, inspection, tests and benchmarks all read this table.

The first row of an operator that takes a problem lowers it, so order is preference. Why a row does
not take it is a sentence that reaches the user through `nmc inspect`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nmcompile.errors import TargetError
from nmcompile.kernels.avx512 import contest, elementwise, resample
from nmcompile.kernels.avx512.attention import rows as attention
from nmcompile.kernels.avx512.lanes import rows as lanes
from nmcompile.kernels.avx512.panel import rows as panel
from nmcompile.kernels.avx512.products import rows as products
from nmcompile.kernels.avx512.recurrent import rows as recurrent
from nmcompile.kernels.avx512.rowwise import rows as rowwise
from nmcompile.kernels.avx512.sliding import rows as sliding
from nmcompile.kernels.avx512.winograd import rows as winograd
from nmcompile.kernels.avx512_amx.tiles import rows as tiles
from nmcompile.kernels.avx512_bf16 import rows as bfloat16
from nmcompile.kernels.avx512_vnni import rounded
from nmcompile.kernels.avx512_vnni.channels import rows as channels
from nmcompile.kernels.avx512_vnni.lanes.rows import INTEGERS, LanesRows
from nmcompile.kernels.problem import Candidate, Lowered, Problem
from nmcompile.kernels.sparse_tensor_core import rows as gpu
from nmcompile.kernels.sparse_tensor_core.gpus import GPUS
from nmcompile.kernels.sparse_tensor_core.rows import GroupedConv, TensorCoreConv, TensorCoreLinear
from nmcompile.kernels.verdict import (
    MADE_FOR,
    Repacked,
    accept,
    never_packed,
    one_config,
    packed_by,
)

RoofKind = Literal["fma", "load", "vnni", "bf16", "amx_int8", "amx_bf16"]
OpKind = Literal[
    "conv2d", "linear", "pool2d", "global_average", "attention", "product", "layer_norm",
    "group_norm", "softmax", "positions", "activation", "resample", "recurrent", "quantise",
    "dequantise", "table", "sum", "gate",
]  # fmt: skip


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
    roof: what bounds its rate on a CPU: multiply-adds, a load from L1 for each of them, products of
        four bytes or of two bfloat16, or products of tiles. GPU rows have none: their roofs are
        not measured.
    packed_as: of `configs`, and beyond them, those that read weights as they are packed for a
        config of another problem with the same weight, the best first. GPU rows have none.
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
    roof: RoofKind | None = "fma"
    packed_as: Repacked = never_packed

    def lower(self, problem: Problem, config: Any = None) -> Lowered:
        """The function and the packed weights; without `config`, with the model's favourite."""
        if config is None:
            config = next((candidate.config for candidate in self.configs(problem)), None)
        return self.emit(self.name, problem, config)


def _tensor_core(name: str, conv: TensorCoreConv, op: OpKind = "conv2d") -> Kernel:
    return Kernel(
        f"{name}__{conv.arch}", op, conv.arch, "float16", conv.method != "dense",
        conv.refuse, conv.decline, conv.configs, conv.lower, None,
    )  # fmt: skip


def _tensor_core_rows(arch: str, wgmma: bool) -> Iterator[Kernel]:
    """The rows of one GPU architecture."""
    kinds: tuple[tuple[str, OpKind, type[TensorCoreConv]], ...] = (
        ("conv2d_f16", "conv2d", TensorCoreConv),
        ("conv2d_f16_grouped", "conv2d", GroupedConv),
        ("linear_f16", "linear", TensorCoreLinear),
    )
    yield Kernel(
        f"conv2d_f16_depthwise__{arch}", "conv2d", arch, "float16", False,
        gpu.refuse_depthwise, accept, one_config, gpu.lower_depthwise, None,
    )  # fmt: skip
    for name, op, kind in kinds:
        if wgmma and kind is TensorCoreConv:
            row = kind(arch, "wgmma", ("sparse", "dense"))
            yield _tensor_core(f"{name}_two_four_wgmma", row, op)
        yield _tensor_core(f"{name}_two_four", kind(arch, "sparse", ("dense",)), op)
        yield _tensor_core(f"{name}_dense", kind(arch, "dense"), op)
    yield Kernel(
        f"pool2d_f16__{arch}", "pool2d", arch, "float16", False,
        accept, accept, one_config, gpu.lower_pool, None,
    )  # fmt: skip
    yield Kernel(
        f"global_average_f16__{arch}", "global_average", arch, "float16", False,
        accept, accept, one_config, gpu.lower_global_average, None,
    )  # fmt: skip


def _tile_rows() -> Iterator[Kernel]:
    """The rows of convolutions and matrix products on the tile unit."""
    ops: tuple[OpKind, ...] = ("conv2d", "linear")
    roofs: tuple[tuple[str, str, RoofKind], ...] = (
        ("i8", "int8", "amx_int8"), ("bf16", "bfloat16", "amx_bf16"),
    )  # fmt: skip
    for op, (short, dtype, roof) in itertools.product(ops, roofs):
        yield Kernel(
            f"{op}_{short}_one_by_n__avx512_amx", op, "avx512_amx", dtype, True,
            tiles.refuse_one_by_n, tiles.decline_one_by_n, tiles.one_by_n_configs,
            tiles.lower_tiles, roof, packed_by(tiles.one_by_n_configs, tiles.packing_of),
        )  # fmt: skip
        yield Kernel(
            f"{op}_{short}_dense__avx512_amx", op, "avx512_amx", dtype, False,
            tiles.refuse_dense, tiles.decline_dense, tiles.dense_configs,
            tiles.lower_tiles, roof, packed_by(tiles.dense_configs, tiles.packing_of),
        )  # fmt: skip


def _bfloat16_rows() -> Iterator[Kernel]:
    """The rows of bfloat16 with one input channel for each output, or without weights."""
    rows: tuple[tuple[str, OpKind, Callable[[Problem], str | None], Any], ...] = (
        (
            "conv2d_bf16_depthwise", "conv2d",
            bfloat16.refuse_depthwise, bfloat16.lower_depthwise,
        ),
        ("pool2d_bf16", "pool2d", accept, bfloat16.lower_pool),
        ("global_average_bf16", "global_average", accept, bfloat16.lower_global_average),
    )  # fmt: skip
    for name, op, refuse, lower in rows:
        yield Kernel(
            f"{name}__avx512_bf16", op, "avx512_bf16", "bfloat16", False,
            refuse, accept, one_config, lower, None,
        )  # fmt: skip


def _lanes_rows() -> Iterator[Kernel]:
    """The rows of convolutions and matrix products with outputs in lanes."""
    ops: tuple[OpKind, ...] = ("conv2d", "linear")
    kinds: tuple[tuple[str, str, str, RoofKind, LanesRows], ...] = (
        ("i8", "avx512_vnni", "int8", "vnni", INTEGERS),
        ("bf16", "avx512_bf16", "bfloat16", "bf16", bfloat16.LANES_ROWS),
    )
    for op, (short, target, dtype, roof, rows) in itertools.product(ops, kinds):
        yield Kernel(
            f"{op}_{short}_one_by_n__{target}", op, target, dtype, True,
            rows.refuse_one_by_n, rows.decline_one_by_n, rows.one_by_n_configs, rows.lower, roof,
            packed_by(rows.one_by_n_configs, rows.packing_of),
        )  # fmt: skip
        yield Kernel(
            f"{op}_{short}_nm__{target}", op, target, dtype, True,
            rows.refuse_nm, rows.decline_nm, rows.nm_configs, rows.lower, roof,
            packed_by(rows.nm_configs, rows.packing_of),
        )  # fmt: skip
        yield Kernel(
            f"{op}_{short}_dense__{target}", op, target, dtype, False,
            rows.refuse_dense, accept, rows.dense_configs, rows.lower, roof,
            packed_by(rows.dense_configs, rows.packing_of),
        )  # fmt: skip


def _recurrent_rows() -> Iterator[Kernel]:
    """The rows of LSTM and GRU."""
    yield Kernel(
        "recurrent_f32_one_by_n__avx512", "recurrent", "avx512", "float32", True,
        recurrent.refuse_one_by_n, recurrent.decline_one_by_n,
        one_config, recurrent.lower_one_by_n,
    )  # fmt: skip
    yield Kernel(
        "recurrent_f32_nm__avx512", "recurrent", "avx512", "float32", True,
        recurrent.refuse_nm, recurrent.decline_nm, one_config, recurrent.lower_nm,
    )  # fmt: skip
    yield Kernel(
        "recurrent_f32_dense__avx512", "recurrent", "avx512", "float32", False,
        accept, accept, one_config, recurrent.lower_recurrent,
    )  # fmt: skip


def _channel_rows() -> Iterator[Kernel]:
    """Integer kernels without weights, or with one input channel for each output."""
    rows: tuple[tuple[str, OpKind, Callable[[Problem], str | None], Any], ...] = (
        (
            "conv2d_i8_depthwise", "conv2d",
            channels.refuse_depthwise, channels.lower_depthwise,
        ),
        ("pool2d_i8", "pool2d", channels.refuse_pool, channels.lower_pool),
        (
            "global_average_i8", "global_average",
            channels.refuse_global_average, channels.lower_global_average,
        ),
        ("quantise_f32_i8", "quantise", accept, channels.lower_quantise),
        ("dequantise_i8_f32", "dequantise", accept, channels.lower_dequantise),
        ("table_i8", "table", accept, channels.lower_table),
        ("sum_i8", "sum", channels.refuse_two, channels.lower_sum),
        ("gate_i8", "gate", channels.refuse_gate, channels.lower_gate),
        ("layer_norm_f32_i8", "layer_norm", rounded.refuse_layer_norm, rounded.lower_layer_norm),
        ("attention_f32_i8", "attention", rounded.refuse_attention, rounded.lower_attention),
    )  # fmt: skip
    for name, op, refuse, lower in rows:
        yield Kernel(
            f"{name}__avx512_vnni", op, "avx512_vnni", "int8", False,
            refuse, accept, one_config, lower, "vnni" if op == "conv2d" else None,
        )  # fmt: skip


CATALOG: tuple[Kernel, ...] = (
    Kernel(
        "conv2d_f32_depthwise__avx512", "conv2d", "avx512", "float32", False,
        sliding.refuse_depthwise, accept, one_config, sliding.lower_depthwise,
    ),
    Kernel(
        "conv2d_f32_winograd_one_by_n__avx512", "conv2d", "avx512", "float32", True,
        winograd.refuse_winograd_one_by_n, contest.decline_winograd_one_by_n,
        winograd.winograd_one_by_n_configs, winograd.lower_winograd,
        packed_as=packed_by(winograd.winograd_one_by_n_configs, winograd.packing_of),
    ),
    Kernel(
        "conv2d_f32_one_by_n__avx512", "conv2d", "avx512", "float32", True,
        panel.refuse_one_by_n, contest.decline_one_by_n,
        panel.one_by_n_configs, panel.lower_panel, packed_as=panel.panel_packed_as,
    ),
    Kernel(
        "conv2d_f32_nm__avx512", "conv2d", "avx512", "float32", True,
        panel.refuse_nm, contest.decline_nm, panel.nm_configs, panel.lower_panel, "load",
        panel.panel_packed_as,
    ),
    Kernel(
        "conv2d_f32_winograd__avx512", "conv2d", "avx512", "float32", False,
        winograd.refuse_winograd, contest.decline_winograd,
        winograd.winograd_dense_configs, winograd.lower_winograd,
        packed_as=packed_by(winograd.winograd_dense_configs, winograd.packing_of),
    ),
    Kernel(
        "conv2d_f32_dense__avx512", "conv2d", "avx512", "float32", False,
        accept, accept, panel.dense_configs, panel.lower_panel, packed_as=panel.panel_packed_as,
    ),
    Kernel(
        "linear_f32_lanes_one_by_n__avx512", "linear", "avx512", "float32", True,
        lanes.refuse_one_by_n, contest.decline_lanes_one_by_n,
        lanes.one_by_n_configs, lanes.lower_one_by_n,
        packed_as=packed_by(lanes.one_by_n_configs, lanes.packing_of),
    ),
    Kernel(
        "linear_f32_lanes_nm__avx512", "linear", "avx512", "float32", True,
        lanes.refuse_nm, contest.decline_lanes_nm, lanes.nm_configs, lanes.lower_nm,
        packed_as=packed_by(lanes.nm_configs, lanes.packing_of),
    ),
    Kernel(
        "linear_f32_one_by_n__avx512", "linear", "avx512", "float32", True,
        panel.refuse_one_by_n, contest.decline_linear_one_by_n,
        panel.one_by_n_configs, panel.lower_panel,
        packed_as=panel.panel_packed_as,
    ),
    Kernel(
        "linear_f32_nm__avx512", "linear", "avx512", "float32", True,
        panel.refuse_nm, contest.decline_linear_nm,
        panel.nm_configs, panel.lower_panel, "load", panel.panel_packed_as,
    ),
    Kernel(
        "linear_f32_dense__avx512", "linear", "avx512", "float32", False,
        accept, accept, lanes.dense_configs, lanes.lower_dense,
        packed_as=packed_by(lanes.dense_configs, lanes.packing_of),
    ),
    Kernel(
        "pool2d_f32__avx512", "pool2d", "avx512", "float32", False,
        accept, accept, one_config, sliding.lower_pool,
    ),
    Kernel(
        "global_average_f32__avx512", "global_average", "avx512", "float32", False,
        accept, accept, one_config, sliding.lower_global_average,
    ),
    Kernel(
        "attention_f32__avx512", "attention", "avx512", "float32", False,
        accept, accept, one_config, attention.lower_attention,
    ),
    Kernel(
        "product_f32__avx512", "product", "avx512", "float32", False,
        accept, accept, one_config, products.lower_product,
    ),
    Kernel(
        "layer_norm_f32__avx512", "layer_norm", "avx512", "float32", False,
        accept, accept, one_config, rowwise.lower_layer_norm, None,
    ),
    Kernel(
        "group_norm_f32__avx512", "group_norm", "avx512", "float32", False,
        accept, accept, one_config, rowwise.lower_group_norm, None,
    ),
    Kernel(
        "softmax_f32__avx512", "softmax", "avx512", "float32", False,
        accept, accept, one_config, rowwise.lower_softmax, None,
    ),
    Kernel(
        "positions_f32__avx512", "positions", "avx512", "float32", False,
        accept, accept, one_config, rowwise.lower_positions, None,
    ),
    Kernel(
        "activation_f32__avx512", "activation", "avx512", "float32", False,
        accept, accept, one_config, elementwise.lower_elementwise, None,
    ),
    *_recurrent_rows(),
    Kernel(
        "resample_f32__avx512", "resample", "avx512", "float32", False,
        resample.refuse_resample, accept, one_config, resample.lower_resample, None,
    ),
    *_bfloat16_rows(),
    *_tile_rows(),
    *_channel_rows(),
    *_lanes_rows(),
    *(row for gpu in GPUS for row in _tensor_core_rows(gpu.arch, wgmma=gpu.group_rate > 0)),
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


ALSO_RUNS: Mapping[str, tuple[str, ...]] = {
    "avx512_vnni": ("avx512",),
    "avx512_bf16": ("avx512_vnni", "avx512"),
    "avx512_amx": ("avx512_bf16", "avx512_vnni", "avx512"),
}
"""Targets that run others' kernels too."""


def rows_for(op: OpKind, target: str, dtype: str) -> list[Kernel]:
    """The rows of one operator, in order of preference."""
    targets = (target, *ALSO_RUNS.get(target, ()))
    return [row for row in CATALOG if (row.op, row.dtype) == (op, dtype) and row.target in targets]


def extends_another(target: str, dtype: str) -> bool:
    """Whether a target has kernels for an element type, and another that it also runs has some."""
    rows = {row.target for row in CATALOG if row.dtype == dtype}
    return target in rows and not rows.isdisjoint(ALSO_RUNS.get(target, ()))


def choose(op: OpKind, target: str, problem: Problem) -> Choice:
    """The first kernel of the target that neither refuses nor declines the problem.

    Raises:
        TargetError: no kernel of the target computes this problem.
    """
    refusals: dict[str, str] = {}
    for kernel in rows_for(op, target, problem.dtype):
        reason = kernel.refuse(problem) or kernel.decline(problem)
        if reason is None:
            return Choice(kernel, refusals)
        refusals[kernel.name] = reason
    reasons = [text for text in refusals.values() if not text.startswith(MADE_FOR)]
    raise TargetError(
        f"target {target} has no kernel for {op} on {problem.dtype}"
        + (f": {reasons[-1]}" if reasons else "")
    )
