"""Runs a model that is lowered for a GPU without one: our kernels emulated, TVM's on the CPU."""

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import tvm
from torch import nn
from tvm import relax

from nmcompile.frontends import open_model
from nmcompile.kernels.cuda.build import cuda_source
from nmcompile.passes.lowering.fallback import is_kernel
from nmcompile.passes.lowering.gpu import fuse_for_gpu, gpu_target
from nmcompile.passes.lowering.half import HalfLowering
from nmcompile.passes.lowering.kernels import LoweredModule, lower_kernels
from nmcompile.passes.lowering.simplify import simplify
from nmcompile.passes.pipeline import run_pipeline
from tests.support.cuda_emulator.run import run_emulated

Array = npt.NDArray[Any]


def lower_for_gpu(model: nn.Module, x: torch.Tensor, arch: str) -> tuple[Any, LoweredModule]:
    """The module whose operators are all TIR functions, and what it was made of."""
    source = open_model(model.eval(), example_inputs=(x,))
    run_pipeline(source.graph)
    lowered = lower_kernels(simplify(source.to_relax()), arch, lowering=HalfLowering)
    return fuse_for_gpu(lowered.module, gpu_target(arch)), lowered


def run_model(module: Any, lowered: LoweredModule, x: Array, arch: str) -> list[Array]:
    """The outputs of `main`, call by call."""
    return _Interpreter(module, arch).run([x, *lowered.params.values()])


class _Interpreter:
    def __init__(self, module: Any, arch: str) -> None:
        self._module, self._arch = module, arch
        self._functions = {var.name_hint: func for var, func in module.functions_items()}
        self._values: dict[Any, Any] = {}

    def run(self, arguments: list[Array]) -> list[Array]:
        main = self._module["main"]
        self._values = dict(zip(main.params, arguments, strict=True))
        for block in main.body.blocks:
            for binding in block.bindings:
                self._values[binding.var] = self._value(binding.value, binding.var.ty)
        result = self._value(main.body.body, None)
        return list(result) if isinstance(result, tuple) else [result]

    def _value(self, value: Any, ty: Any) -> Any:
        if value in self._values:
            return self._values[value]
        if isinstance(value, relax.Tuple):
            return tuple(self._value(field, None) for field in value.fields)
        if isinstance(value, relax.TupleGetItem):
            return self._value(value.tuple_value, None)[value.index]
        if isinstance(value, tvm.ir.GenericConst):
            return value.value.numpy()
        assert isinstance(value, relax.Call), value
        name = value.op.name
        if name == "relax.reshape":
            return self._value(value.args[0], None).reshape([int(extent) for extent in ty.shape])
        assert name in ("relax.call_tir", "relax.call_tir_inplace"), name
        places = list(value.attrs.inplace_indices) if name.endswith("inplace") else []
        return self._call(value.args[0].name_hint, list(value.args[1].fields), ty, places)

    def _call(self, name: str, operands: list[Any], ty: Any, places: list[int]) -> Any:
        arguments = [self._value(operand, None) for operand in operands]
        many = isinstance(ty, relax.TupleType)
        types = list(ty.fields) if many else [ty]
        outputs = []
        for index, kind in enumerate(types):
            place = int(places[index]) if places else -1
            if place >= 0:
                outputs.append(arguments[place])
                continue
            shape = [int(extent) for extent in kind.shape]
            # What a kernel leaves out must not look like a result.
            outputs.append(np.full(shape, np.nan, str(kind.dtype)))
            arguments.append(outputs[-1])
        func = self._functions[name]
        if is_kernel(name):
            arguments = [np.ascontiguousarray(argument) for argument in arguments]
            names = [str(param.name) for param in func.params]
            run_emulated(_source(func, self._arch), dict(zip(names, arguments, strict=True)))
        else:
            _run_on_cpu(func, arguments, len(outputs))
        return tuple(outputs) if many else outputs[0]


@functools.cache
def _source(func: Any, arch: str) -> Any:
    return cuda_source(func, arch)


def _run_on_cpu(func: Any, arguments: list[Array], outputs: int) -> None:
    module = tvm.IRModule({"f": func.with_attr("global_symbol", "f")})
    built = tvm.compile(module, target=tvm.target.Target({"kind": "llvm"}))
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(argument)) for argument in arguments]
    built["f"](*tensors)
    for argument, tensor in zip(arguments[-outputs:], tensors[-outputs:], strict=True):
        argument[...] = tensor.numpy()
