"""Lanes outside of a mask touch no memory."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512 import emit as floats
from nmcompile.kernels.avx512_vnni import emit as integers
from nmcompile.kernels.pipeline import NAME as TIR_PIPELINE
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.runtime.native import native_runtime
from nmcompile.targets import find_target
from tests.support.fence import between_guards

ACTIVE = 9
LOADS: dict[str, tuple[str, str, Callable[[Any, Any], Any]]] = {
    "floats": ("float32", "float32", lambda x, at: floats.load(x, at, ACTIVE)),
    "bytes": ("uint8", "int8", lambda x, at: integers.load_bytes(x, at, ACTIVE)),
    "widened": ("uint8", "int32", lambda x, at: integers.widen_bytes(x, at, ACTIVE)),
}


@pytest.mark.isa("avx512f")
@pytest.mark.parametrize("name", LOADS)
def test_masked_lanes_are_not_read_and_zero(name: str) -> None:
    read, written, load = LOADS[name]
    with PrimFuncBuilder("masked") as func:
        x = func.tensor("x", (64,), read)
        where = func.tensor("where", (1,), "int32")
        y = func.tensor("y", (64,), written)
        value = T.bind(load(x, T.bind(where[0])))
        T.buffer_store(y, value, [T.ramp(0, 1, int(value.ty.dtype.lanes))])
    function = func.result().with_attr("global_symbol", "masked")
    target = tvm.target.Target(find_target("avx512").llvm_options)
    module = tvm.compile(
        tvm.IRModule({"masked": function}), target=target, tir_pipeline=TIR_PIPELINE
    )
    numbers = np.arange(1, 65).astype(read)
    found = tvm.runtime.tensor(np.zeros(64, written))
    first = len(numbers) - ACTIVE
    fenced = between_guards(numbers)
    start = tvm.runtime.tensor(np.array([first], np.int32))
    module["masked"](native_runtime().from_dlpack(fenced), start, found)
    np.testing.assert_array_equal(found.numpy()[:ACTIVE], numbers[first:])
    assert not found.numpy()[ACTIVE:].any()
