"""What the functions of this room share: loops over tasks and blocks, arguments, stores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Buffer, Expr, store
from nmcompile.kernels.avx512_vnni.emit import BYTES, QUAD, load_bytes, spread, store_bytes
from nmcompile.kernels.avx512_vnni.requantise import Requantiser
from nmcompile.kernels.integers import STEPS, IntegerEpilogue
from nmcompile.kernels.prim_func import PrimFuncBuilder

PARALLEL_FROM = 8192  # elements from which a parallel region pays for its microsecond

Array = npt.NDArray[Any]


def tasks(count: int, work: int) -> Any:
    """The loop over independent tasks, in parallel where they touch enough elements together."""
    return (T.parallel if count > 1 and work > PARALLEL_FROM else T.serial)(0, count)


def over_blocks(channels: int, body: Callable[[Expr, int], None]) -> None:
    """Emit `body(first channel, active channels)` for every 64 channels and for the rest."""
    full, rest = divmod(channels, BYTES)
    if full:
        with T.serial(0, full) as block:
            body(T.bind(block * BYTES), BYTES)
    if rest:
        body(T.int32(full * BYTES), rest)


@dataclasses.dataclass(frozen=True)
class Ending:
    """The arguments that turn sums into results, declared together."""

    requantiser: Requantiser
    offset: Buffer
    scale: Buffer
    residual: Buffer | None
    out: Buffer


def declare_ending(
    func: PrimFuncBuilder, size: int, out_shape: tuple[int, ...], epilogue: IntegerEpilogue
) -> Ending:
    """Declare offset and scale of `size` values, steps, [residual], [out]; flat views of both.

    In place, out is the residual.
    """
    offset = func.tensor("offset", (size,), "int32")
    scale = func.tensor("scale", (size,))
    steps = func.tensor("steps", (len(STEPS),))
    added, written = func.output(out_shape, epilogue, epilogue.out, "uint8")
    return Ending(Requantiser(epilogue, steps), offset, scale, added, written)


def ending_arrays(offset: Array, scale: Array, steps: Array) -> Mapping[str, Array]:
    """The constants of `declare_ending`."""
    return {
        "offset": np.ascontiguousarray(offset, np.int32),
        "scale": np.ascontiguousarray(scale, np.float32),
        "steps": steps,
    }


def write_sums(
    ending: Ending, at: Expr, sums: Sequence[Expr], offset: Expr, scale: Expr, active: int
) -> None:
    """Finish the sums of 64 values, which are in the order of `unpack`ed bytes.

    `offset` and `scale` are those of all of them.
    """
    added: list[Expr | None] = [None] * QUAD
    if ending.residual is not None:
        added = [*spread(T.bind(load_bytes(ending.residual, at, active)))]
    values = [
        ending.requantiser.real(total + offset, scale, residual)
        for total, residual in zip(sums, added, strict=True)
    ]
    store_unpacked(ending, at, values, active)


def store_unpacked(ending: Ending, at: Expr, values: Sequence[Expr], active: int) -> None:
    """Write the first `active` of 64 results; `values` are in the order of `unpack`ed bytes."""
    if ending.requantiser.epilogue.out == "uint8":
        store_bytes(ending.out, at, ending.requantiser.pack_unpacked(values), active)
        return
    for first in range(0, active, LANES):
        order = [v * LANES + first // QUAD + k for v in range(QUAD) for k in range(QUAD)]
        store(ending.out, at + first, T.Shuffle(list(values), order), min(LANES, active - first))
