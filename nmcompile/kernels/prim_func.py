"""The frame of a TIR function, whatever its target."""

from __future__ import annotations

import math
from typing import Any

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from nmcompile.kernels.integers import IntegerEpilogue
from nmcompile.kernels.spec import Epilogue

Expr = Any  # TVM ships no type stubs
Buffer = Any


class PrimFuncBuilder:
    """Context that collects one PrimFunc: arguments first, then statements.

    `op_pattern` 8 (opaque) keeps Relax from fusing the function with its neighbours.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._ib = IRBuilder()
        self._frame: Any = None

    def __enter__(self) -> PrimFuncBuilder:
        self._ib.__enter__()
        self._frame = T.prim_func(private=True)
        self._frame.__enter__()
        T.func_name(self._name)
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        return self

    def __exit__(self, *exc: Any) -> None:
        self._frame.__exit__(*exc)
        self._ib.__exit__(*exc)

    def tensor(self, name: str, shape: tuple[int, ...], dtype: str = "float32") -> Buffer:
        """Declare the next argument."""
        return T.arg(name, T.buffer(shape, dtype))

    def list_of(self, name: str, dtype: str) -> Buffer:
        """Declare the next argument, one-dimensional and of any length.

        Layers whose lists differ in length alone can then share the function.
        """
        return T.arg(name, T.buffer((tirx.Var(f"{name}_length", "int64"),), dtype))

    def output(
        self,
        shape: tuple[int, ...],
        epilogue: Epilogue | IntegerEpilogue,
        dtype: str = "float32",
        residual_dtype: str = "float32",
    ) -> tuple[Buffer | None, Buffer]:
        """Declare the last arguments, [residual] and out; flat views, the same one in place."""
        assert not epilogue.in_place or dtype == residual_dtype
        # All arguments come before the first view.
        residual = self.tensor("residual", shape, residual_dtype) if epilogue.residual else None
        out = None if epilogue.in_place else self.tensor("out", shape, dtype)
        added = None if residual is None else self.flat(residual)
        return added, added if out is None else self.flat(out)

    def flat(self, buffer: Buffer) -> Buffer:
        """A one-dimensional view of an argument."""
        size = math.prod(int(extent) for extent in buffer.shape)
        view = T.decl_buffer((size,), buffer.dtype, data=buffer.data)
        IRBuilder.name(f"{buffer.name}_flat", view)
        return view

    def bytes_of(self, buffer: Buffer) -> Buffer:
        """A one-dimensional view of an argument's bytes."""
        size = math.prod(int(extent) for extent in buffer.shape)
        view = T.decl_buffer(
            (size * tvm.DataType(buffer.dtype).itemsize,), "uint8", data=buffer.data
        )
        IRBuilder.name(f"{buffer.name}_bytes", view)
        return view

    def result(self) -> Any:
        """The finished function; valid after the context is closed."""
        return self._ib.get()
