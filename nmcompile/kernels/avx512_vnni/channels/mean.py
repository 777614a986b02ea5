"""The mean over all pixels of 64 channels at a time."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Expr, lanes, splat
from nmcompile.kernels.avx512_vnni.channels.frame import declare_ending, tasks, write_sums
from nmcompile.kernels.avx512_vnni.emit import BYTES, QUAD, dot, interleave, load_bytes
from nmcompile.kernels.integers import IntegerEpilogue
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.spec import GlobalAverage


def emit_global_average(name: str, pool: GlobalAverage, epilogue: IntegerEpilogue) -> object:
    """The TIR function (x, offset, scale, steps, [residual], [out])."""
    full, rest = divmod(pool.channels, BYTES)
    work = pool.batch * pool.channels * pool.height * pool.width
    with PrimFuncBuilder(name) as func:
        shape = (pool.batch, pool.height, pool.width, pool.channels)
        x = func.tensor("x", shape, "uint8")
        ending = declare_ending(func, 1, pool.out_shape, epilogue)
        x = func.flat(x)

        def block(image: Expr, channel: Expr, active: int) -> None:
            start = T.bind(image * (pool.height * pool.width * pool.channels) + channel)
            sums = _sums(x, start, pool, active)
            offset, scale = T.bind(splat(ending.offset[0])), T.bind(splat(ending.scale[0]))
            at = T.bind(image * pool.channels + channel)
            write_sums(ending, at, sums, offset, scale, active)

        if full:
            with tasks(pool.batch * full, work) as task:
                block(T.bind(task // full), T.bind(task % full * BYTES), BYTES)
        if rest:
            with tasks(pool.batch, work * rest // pool.channels) as image:
                block(image, T.int32(full * BYTES), rest)
    return func.result()


def _sums(x: Expr, start: Expr, pool: GlobalAverage, active: int) -> list[Expr]:
    """Sums over the pixels of 64 channels, in the order of `interleave`."""
    quads, rest = divmod(pool.height * pool.width, QUAD)
    sums = T.alloc_buffer((QUAD * LANES,), "int32", scope="local")
    ones, zero = T.broadcast(T.int8(1), BYTES), T.broadcast(T.int8(0), BYTES)

    def add(at: Expr, pixels: int) -> None:
        rows = [
            T.bind(load_bytes(x, at + pixel * pool.channels, active)) if pixel < pixels else zero
            for pixel in range(QUAD)
        ]
        for v, bytes_ in enumerate(interleave(rows)):
            where = [lanes(v * LANES)]
            T.buffer_store(sums, dot(sums[where[0]], bytes_, ones), where)

    for v in range(QUAD):
        T.buffer_store(sums, splat(T.int32(0)), [lanes(v * LANES)])
    if quads:
        with T.serial(0, quads) as quad:
            add(T.bind(start + quad * (QUAD * pool.channels)), QUAD)
    if rest:
        add(T.bind(start + quads * (QUAD * pool.channels)), rest)
    return [T.bind(sums[lanes(v * LANES)]) for v in range(QUAD)]
