"""In which precision a model is compiled, and what has to happen to it first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nmcompile.errors import InputError, PatternError, TargetError
from nmcompile.folding import open_folded
from nmcompile.frontends import SourceModel
from nmcompile.passes.graphs.interface import PassResult
from nmcompile.progress import Progress
from nmcompile.runtime import cpu
from nmcompile.shape_sets import Shapes
from nmcompile.sparsity import Pruning
from nmcompile.targets import BF16, TARGETS, Target
from nmcompile.wording import way

if TYPE_CHECKING:
    from nmcompile.quantization import Quantization, QuantizationReport

INT8, INT8_TARGET = "int8", "avx512_vnni"
"""The precision that models are quantised to, and the oldest target that computes in it."""
PAYS = 1.3
"""How much faster bfloat16 has to be multiplied than float32, for less exact results."""


def check_precision(
    precision: str | None,
    target: Target,
    calibration: Any,
    quantization: Quantization | None,
    pruning: Pruning,
) -> None:
    """Make sure that a model can be compiled in a precision; arguments as `nmcompile.compile`.

    Raises:
        TargetError: it is unknown, or the target does not compute in it.
        InputError: there is no calibration data, or it is of no use.
        PatternError: the model is to be pruned, too.
    """
    if precision not in (None, INT8, BF16):
        raise TargetError(
            f"precision {precision!r} is unknown; expected {INT8} or {BF16}, or none, for the "
            "target's own"
        )
    if precision != INT8 and (calibration is not None or quantization is not None):
        raise InputError(
            "calibration data and what goes with it are for quantising: expected "
            f"{way(f'--precision {INT8}', f'precision={INT8!r}')} with them, found "
            f"{precision or 'none'}"
        )
    if precision is None:
        return
    if precision == BF16:
        if not target.bfloat16:
            able = ", ".join(row.name for row in TARGETS if row.bfloat16)
            raise TargetError(
                f"precision {BF16} needs one of the targets {able}, found {target.name}"
            )
        return
    if not target.integers:
        able = " or ".join(row.name for row in TARGETS if row.integers)
        raise TargetError(
            f"precision {INT8} needs the target {able}, found {target.name}: compile with "
            f"{way(f'--target {INT8_TARGET}', f'target={INT8_TARGET!r}')}, or quantise with "
            "`nmc quantize` (nmcompile.quantize) and run the ONNX file"
        )
    if calibration is None:
        raise InputError(
            f"precision {INT8} needs to see what the model sees in use: expected calibration data, "
            f"found none; name a folder or a .npz with {way('--data', 'calibration')}"
        )
    if pruning.mode == "project":
        raise PatternError(
            "layers are pruned before they are quantised: found "
            f"{way('--enforce', 'pruning')} with precision {INT8}; prune with `nmc enforce` "
            "(nmcompile.enforce), and compile what it gives"
        )


def paying_precision(
    precision: str | None, target: Target, elsewhere: bool
) -> tuple[str | None, tuple[str, ...]]:
    """Keep float32 where this machine's vectors multiply bfloat16 no faster.

    Args:
        precision: what was asked for.
        target: the target.
        elsewhere: whether the model is compiled for another CPU; nothing is measured then, nor
            where this one cannot run the target, nor for tiles.

    Returns:
        The precision to compile in, and what users should know of it.
    """
    if precision != BF16 or elsewhere or cpu.TILES in target.cpu_features:
        return precision, ()
    name, flags = cpu.host()
    if not flags.issuperset(target.cpu_features):
        return precision, ()
    from nmcompile.machine.roofs import measure_roofs

    roofs = measure_roofs()
    assert roofs.bf16 is not None, "a CPU that runs the target has its roof"
    if roofs.bf16 >= PAYS * roofs.fma:
        return precision, ()
    better = ""
    if cpu.TILES in flags:
        amx = way("--target avx512_amx", "target='avx512_amx'")
        better = f"; its tile unit multiplies faster: use {amx}"
    return None, (
        f"compiled in float32: this machine's {name} multiplies bfloat16 in vectors at "
        f"{roofs.bf16:.0f} GFLOP/s, and float32 at {roofs.fma:.0f}{better}",
    )


def open_in(
    precision: str | None,
    model: Any,
    example_inputs: Any,
    *,
    sets: Sequence[Shapes | None],
    calibration: Any,
    quantization: Quantization | None,
    progress: Progress,
    smaller: bool = True,
) -> tuple[list[tuple[SourceModel, PassResult]], QuantizationReport | None]:
    """Open a model, folded and in a precision, for each of the sets of shapes.

    Other arguments are as for `nmcompile.compile` and `open_folded`.

    Raises:
        NmcompileError: as `open_folded` and `nmcompile.quantize`.
    """
    if precision != INT8:
        return [
            open_folded(model, example_inputs, shapes=shapes, progress=progress, smaller=smaller)
            for shapes in sets
        ], None
    from nmcompile.quantization.quantize import quantize_sets

    protos, report = quantize_sets(
        model,
        calibration,
        sets,
        quantization=quantization,
        example_inputs=example_inputs,
        progress=progress,
    )
    opened = [open_folded(proto, progress=progress) for proto in protos]
    return [(replace(source, title=report.title), folded) for source, folded in opened], report
