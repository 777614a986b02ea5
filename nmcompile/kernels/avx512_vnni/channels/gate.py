"""Products of two tensors of bytes, one of them the same for all pixels of an image."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Expr, splat, store
from nmcompile.kernels.avx512_vnni.channels.frame import Ending, tasks
from nmcompile.kernels.avx512_vnni.emit import BYTES, QUAD, multiply_add, store_bytes, widen_bytes
from nmcompile.kernels.avx512_vnni.requantise import Requantiser
from nmcompile.kernels.integers import STEPS, Gate, IntegerEpilogue
from nmcompile.kernels.prim_func import PrimFuncBuilder

PIXELS = 16  # of a task: they share the gate's registers


def emit_gate(name: str, spec: Gate, epilogue: IntegerEpilogue) -> object:
    """The TIR function (x, offset, scale, steps, gate, out).

    offset: the negated zero points of x and of the gate. `epilogue` says nothing of the gate.
    """
    full, rest = divmod(spec.channels, BYTES)
    chunks = -(-spec.pixels // PIXELS)
    shape = (spec.batch, spec.pixels, spec.channels)
    with PrimFuncBuilder(name) as func:
        x = func.tensor("x", shape, "uint8")
        offset = func.tensor("offset", (2,), "int32")
        scale = func.tensor("scale", (1,))
        steps = func.tensor("steps", (len(STEPS),))
        gate = func.tensor("gate", (spec.batch, spec.channels), "uint8")
        _, out = func.output(shape, epilogue, epilogue.out)
        ending = Ending(Requantiser(epilogue, steps), offset, scale, None, out)
        x, gate = func.flat(x), func.flat(gate)

        def block(image: Expr, first: Expr, channel: Expr, active: int) -> None:
            at = T.bind(image * spec.channels + channel)
            counts = [min(LANES, active - part) for part in range(0, active, LANES)]
            factors = []
            for v, count in enumerate(counts):
                value = widen_bytes(gate, at + v * LANES, count) + splat(offset[1])
                # Words above are zero, so that a product of words is one of numbers.
                factors.append(T.bind(value & splat(T.int32(0xFFFF))))
            with T.serial(0, T.min(T.int32(PIXELS), spec.pixels - first)) as pixel:
                place = image * spec.pixels + first + pixel
                start = T.bind(place * spec.channels + channel)
                values = []
                for v, count in enumerate(counts):
                    value = widen_bytes(x, start + v * LANES, count) + splat(offset[0])
                    product = T.bind(multiply_add(value, factors[v]))
                    values.append(ending.requantiser.real(product, T.bind(splat(scale[0]))))
                if epilogue.out == "uint8":
                    packed = ending.requantiser.pack(values + values[:1] * (QUAD - len(values)))
                    store_bytes(out, start, packed, active)
                else:
                    for v, count in enumerate(counts):
                        store(out, start + v * LANES, values[v], count)

        work = spec.batch * spec.pixels * spec.channels
        for blocks, active, start in ((full, BYTES, 0), (int(rest > 0), rest, full * BYTES)):
            if blocks:
                with tasks(spec.batch * chunks * blocks, work) as task:
                    channel = T.bind(task % blocks * BYTES + start)
                    first = T.bind(task // blocks % chunks * PIXELS)
                    block(T.bind(task // (blocks * chunks)), first, channel, active)
    return func.result()
