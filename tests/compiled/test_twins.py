"""The twins of AVX-512's instructions, beside numpy and what the manual says of NaN and bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tvm
from tvm.tirx.script import builder as T

from nmcompile.kernels.pipeline import NAME as TIR_PIPELINE
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.targets import find_target
from tests.support import twins

Array = npt.NDArray[Any]

pytestmark = pytest.mark.skipif(not twins.here(), reason="this CPU needs no twins")
RANDOM = np.random.default_rng(0)
FLOATS, INTS, WORDS, BYTES = (("float32", 16), ("int32", 16), ("int16", 32), ("int8", 64))


def run(name: str, made: tuple[str, int], *operands: Array, extra: tuple[Any, ...] = ()) -> Array:
    """What an instruction, or its twin, makes of vectors; `extra` are its last operands."""
    with PrimFuncBuilder("once") as func:
        given = [func.tensor(f"x{k}", x.shape, str(x.dtype)) for k, x in enumerate(operands)]
        out = func.tensor("out", (made[1],), made[0])
        vectors = [T.bind(x[T.ramp(0, 1, int(x.shape[0]))]) for x in given]
        dtype = f"{made[0]}x{made[1]}"
        value = T.call_llvm_pure_intrin(dtype, name, *vectors, *extra)
        T.buffer_store(out, T.bind(value), [T.ramp(0, 1, made[1])])
    function = func.result().with_attr("global_symbol", "once")
    target = tvm.target.Target(find_target("avx512").llvm_options)
    module = tvm.compile(tvm.IRModule({"once": function}), target=target, tir_pipeline=TIR_PIPELINE)
    found = tvm.runtime.tensor(np.zeros(made[1], made[0]))
    module["once"](*map(tvm.runtime.tensor, operands), found)
    result: Array = found.numpy()
    return result


def whole(dtype: str, count: int) -> Array:
    """Any values of a type, its bounds among them."""
    info = np.iinfo(dtype)
    values = RANDOM.integers(info.min, info.max, count, dtype, endpoint=True)
    values[:4] = info.min, info.max, 0, info.max
    return values


@pytest.mark.parametrize("kind", ["max", "min"])
def test_extremes_are_the_second_operand_where_either_is_nan(kind: str) -> None:
    a, b = RANDOM.standard_normal((2, 16), np.float32)
    a[3], b[5], a[7], b[7] = np.nan, np.nan, 0.0, -0.0
    found = run(f"llvm.x86.avx512.{kind}.ps.512", FLOATS, a, b, extra=(T.int32(4),))
    better = a > b if kind == "max" else a < b
    np.testing.assert_array_equal(found.view(np.int32), np.where(better, a, b).view(np.int32))


def test_products_of_bytes_are_added_without_saturation() -> None:
    sums, x, w = whole("int32", 16) // 2, whole("uint8", 64), whole("int8", 64)
    x[:4], w[:4] = 255, -128
    products = (x.astype(np.int32) * w).reshape(16, 4).sum(1, dtype=np.int32)
    found = run("llvm.x86.avx512.vpdpbusd.512", INTS, sums, x.view(np.int8), w)
    np.testing.assert_array_equal(found, sums + products)


def test_products_of_words_are_added() -> None:
    a, b = whole("int16", 32), whole("int16", 32)
    products = (a.astype(np.int32) * b).reshape(16, 2).sum(1, dtype=np.int32)
    np.testing.assert_array_equal(run("llvm.x86.avx512.pmaddw.d.512", INTS, a, b), products)


def test_floats_are_rounded_to_even_and_what_does_not_fit_is_the_least_number() -> None:
    x = (RANDOM.standard_normal(16) * 1000).astype(np.float32)
    x[:8] = 0.5, 1.5, -2.5, 2.0**31, -(2.0**31), np.inf, np.nan, 2.0**31 - 128
    least = -(2**31)
    expected = np.rint(x[8:]).astype(np.int32)
    extra = (T.int16(-1), T.int32(4))
    found = run("llvm.x86.avx512.mask.cvtps2dq.512", INTS, x, np.zeros(16, np.int32), extra=extra)
    np.testing.assert_array_equal(found[:8], [0, 2, -2, least, least, least, least, 2**31 - 128])
    np.testing.assert_array_equal(found[8:], expected)


@pytest.mark.parametrize(
    ("name", "source", "made", "low", "high"),
    [("packssdw", "int32", WORDS, -(2**15), 2**15 - 1), ("packuswb", "int16", BYTES, 0, 255)],
)
def test_packs_saturate_and_take_turns_by_128_bits(
    name: str, source: str, made: tuple[str, int], low: int, high: int
) -> None:
    a, b = (whole(source, made[1] // 2) // int(RANDOM.integers(1, 99)) for _ in range(2))
    turns = np.stack([a.reshape(4, -1), b.reshape(4, -1)], 1).reshape(-1)
    found = run(f"llvm.x86.avx512.{name}.512", made, a, b)
    np.testing.assert_array_equal(
        found, np.clip(turns.astype(np.int64), low, high).astype(f"u{made[0]}").view(made[0])
    )


def test_bytes_are_picked_by_the_low_bits_of_an_index() -> None:
    a, b, index = whole("int8", 64), whole("int8", 64), whole("int8", 64)
    low = index.view(np.uint8)
    one = run("llvm.x86.avx512.permvar.qi.512", BYTES, a, index)
    np.testing.assert_array_equal(one, a[low % 64])
    two = run("llvm.x86.avx512.vpermi2var.qi.512", BYTES, a, index, b)
    np.testing.assert_array_equal(two, np.concatenate([a, b])[low % 128])


def test_floats_are_picked_by_the_low_bits_of_a_place() -> None:
    source, places = RANDOM.standard_normal(16).astype(np.float32), whole("int32", 16)
    low = places.view(np.uint32)
    every = run("llvm.x86.avx512.permvar.sf.512", FLOATS, source, places)
    np.testing.assert_array_equal(every, source[low % 16])
    near = run("llvm.x86.avx512.vpermilvar.ps.512", FLOATS, source, places)
    np.testing.assert_array_equal(near, source[np.arange(16) // 4 * 4 + low % 4])
