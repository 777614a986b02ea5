"""Small libraries that the runtime's tests write into artifacts."""

# TVMScript is not Python to a type checker: T.Buffer(...) is a value where a type should stand.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, valid-type"

from pathlib import Path
from typing import Any

import tvm
from tvm import relax
from tvm.script import tirx as T

from nmcompile.linking import link
from nmcompile.targets import find_target
from tests.support.manifests import SHAPE


@T.prim_func(private=True)
def add(
    x: T.Buffer((8, 16), "float32"),
    w: T.Buffer((8, 16), "float32"),
    o: T.Buffer((8, 16), "float32"),
):
    T.func_attr({"tirx.noalias": True, "op_pattern": 8})
    for i in T.parallel(8):
        o[i, T.ramp(0, 1, 16)] = x[i, T.ramp(0, 1, 16)] + w[i, T.ramp(0, 1, 16)]


@T.prim_func(private=True)
def multiply(
    x: T.Buffer((8, 16), "float32"),
    w: T.Buffer((8, 16), "float32"),
    o: T.Buffer((8, 16), "float32"),
):
    T.func_attr({"tirx.noalias": True, "op_pattern": 8})
    for i in T.parallel(8):
        o[i, T.ramp(0, 1, 16)] = x[i, T.ramp(0, 1, 16)] * w[i, T.ramp(0, 1, 16)]


@T.prim_func(private=True)
def stamp(
    x: T.Buffer((8, 16), "float32"),
    w: T.Buffer((8, 16), "float32"),
    o: T.Buffer((8, 16), "float32"),
):
    T.func_attr({"op_pattern": 8})
    o[0, T.ramp(0, 1, 16)] = w[0, T.ramp(0, 1, 16)]
    x[0, 0] = T.float32(42)


def _export(module: Any, folder: Path, exec_mode: str = "bytecode", cpu: str = "") -> bytes:
    options = {"kind": "llvm", "mcpu": cpu} if cpu else find_target("avx512").llvm_options
    target = tvm.target.Target(options)
    file = folder / "lib.so"
    relax.build(module, target, exec_mode=exec_mode).export_library(str(file), fcompile=link)
    return file.read_bytes()


def _affine() -> Any:
    """main(x, w, b) = (x * w + b + b,), in a builder"""
    builder = relax.BlockBuilder()
    plus, times = builder.add_func(add, "add"), builder.add_func(multiply, "multiply")
    x, w, b = (relax.Var(name, relax.TensorType(SHAPE, "float32")) for name in "xwb")
    with builder.function("main", [x, w, b]):
        with builder.dataflow():
            product = builder.emit(relax.call_tir(times, [x, w], x.ty))
            once = builder.emit(relax.call_tir(plus, [product, b], x.ty))
            twice = builder.emit_output(relax.call_tir(plus, [once, b], x.ty))
        builder.emit_func_output(twice)
    return builder


def affine_library(folder: Path, exec_mode: str = "bytecode", cpu: str = "") -> bytes:
    """main as in `_affine`"""
    return _export(_affine().get(), folder, exec_mode, cpu)


def preparing_library(folder: Path, short: bool = False) -> bytes:
    """main as in `_affine`, and prepare(w, b) = (w * b, b), or (b,) if `short`"""
    builder = _affine()
    times = builder.add_func(multiply, "multiply")
    w, b = (relax.Var(name, relax.TensorType(SHAPE, "float32")) for name in "wb")
    with builder.function("prepare", [w, b]):
        with builder.dataflow():
            product = builder.emit(relax.call_tir(times, [w, b], w.ty))
            result = builder.emit_output(relax.Tuple([b] if short else [product, b]))
        builder.emit_func_output(result)
    return _export(builder.get(), folder)


def two_input_library(folder: Path) -> bytes:
    """main(x, y) = (x + y, x)"""
    builder = relax.BlockBuilder()
    plus = builder.add_func(add, "add")
    x, y = (relax.Var(name, relax.TensorType(SHAPE, "float32")) for name in "xy")
    with builder.function("main", [x, y]):
        with builder.dataflow():
            total = builder.emit(relax.call_tir(plus, [x, y], x.ty))
            result = builder.emit_output(relax.Tuple([total, x]))
        builder.emit_func_output(result)
    return _export(builder.get(), folder)


def stamping_library(folder: Path) -> bytes:
    """main(x) returns anything and writes 42 into the first element of the x it was given"""
    builder = relax.BlockBuilder()
    kernel = builder.add_func(stamp, "stamp")
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(relax.call_tir(kernel, [x, x], x.ty))
        builder.emit_func_output(result)
    return _export(builder.get(), folder)


def identity_library(folder: Path, shape: tuple[int, ...], dtype: str) -> bytes:
    """main(x) = x; its only kernel is not called"""
    builder = relax.BlockBuilder()
    builder.add_func(add, "add")
    x = relax.Var("x", relax.TensorType(shape, dtype))
    with builder.function("main", [x]):
        builder.emit_func_output(x)
    return _export(builder.get(), folder)
