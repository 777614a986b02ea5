"""The mean over all pixels of NHWC bfloat16, computed in float32."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, lanes, splat
from nmcompile.kernels.avx512_bf16.emit import instructions, load_floats, store_floats
from nmcompile.kernels.avx512_bf16.layout import padded
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.spec import GlobalAverage


def emit_global_average(name: str, average: GlobalAverage) -> Any:
    """The TIR function (x, out): (N, H, W, C) to (N, 1, 1, C), bfloat16, channels padded."""
    channels, pixels = padded(average.channels), average.height * average.width
    with PrimFuncBuilder(name) as func:
        shape = (average.batch, average.height, average.width, channels)
        x = func.tensor("x", shape, "bfloat16")
        out = func.tensor("out", (average.batch, 1, 1, channels), "bfloat16")
        source, target = func.bytes_of(x), func.bytes_of(out)
        active = min(LANES, channels)
        with instructions(), T.parallel(0, average.batch) as image:
            with T.serial(0, -(-channels // LANES)) as block:
                # The last vector ends with the channels, and may do some once more.
                channel = T.bind(T.min(block * LANES, max(0, channels - LANES)))
                total = T.alloc_buffer((LANES,), "float32", scope="local")
                T.buffer_store(total, splat(0.0), [lanes(0)])
                with T.serial(0, pixels) as pixel:
                    at = (image * pixels + pixel) * channels + channel
                    more = load_floats(source, at, active)
                    T.buffer_store(total, total[lanes(0)] + more, [lanes(0)])
                mean = T.bind(total[lanes(0)] * splat(1.0 / pixels))
                store_floats(target, image * channels + channel, [mean], active)
    return func.result()
