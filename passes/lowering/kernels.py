"""Replace matched groups by calls of our kernels, and turn constants into parameters.

The entry function then takes the model's inputs followed by the weights as the kernels read them,
which live outside the compiled library and are mapped from the artifact at run time.
Where a kernel reads other arrays than the artifact keeps, a second function, `prepare`, makes all
arguments of the entry function out of the artifact's, once per load.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from nmcompile.errors import TargetError, UnsupportedOperatorError
from nmcompile.kernels.catalog import Choice, OpKind, choose
from nmcompile.kernels.objects import MADE_BY
from nmcompile.kernels.problem import Lowered, Prepare, Problem
from nmcompile.passes.lowering.batch.split import EARLY, SPLIT_OPS
from nmcompile.passes.lowering.matching.match import Group, Matcher
from nmcompile.passes.lowering.naming import Content, content_name, content_of
from nmcompile.passes.lowering.prepare import PREPARE, Operand, add_prepare
from nmcompile.passes.lowering.view import constant, is_call_of
from nmcompile.sparsity import Detection, detect

Expr = Any
Array = npt.NDArray[np.generic]
INLINE_BYTES = 1024  # smaller constants stay in the library
ENTRY = "main"


@dataclass(frozen=True, eq=False)
class KernelCall:
    """One kernel call of the lowered function: which layer, which kernel, and why."""

    symbol: str
    group: Group
    problem: Problem
    choice: Choice


@dataclass(eq=False)
class LoweredModule:
    """A Relax module whose hot operators are kernel calls.

    params: arrays that the entry takes behind its inputs, in order, or, if there is a `prepare`
        function, that this takes to make them.
    operands: how each of those that the entry takes is made of `params`.
    calls: kernel calls in execution order.
    leftovers: names of the Relax operators that take TVM's own lowering.
    real: layers of a quantised model that are computed on real numbers, and why; None with a
        sentence for what is no layer.
    """

    module: Any
    params: dict[str, Array] = field(default_factory=dict)
    operands: list[Operand] = field(default_factory=list)
    calls: list[KernelCall] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    real: list[tuple[Group | None, str]] = field(default_factory=list)

    @property
    def prepares(self) -> bool:
        """Whether there is a `prepare` function."""
        return any(var.name_hint == PREPARE for var in self.module.get_global_vars())


PatternOf = Callable[[Group], Detection | None]
Chooser = Callable[[OpKind, str, Problem], Choice]


def detect_group(group: Group) -> Detection:
    """The most useful pattern that the weight itself holds."""
    assert group.weight is not None
    return detect(group.weight)


def lower_kernels(
    module: Any,
    target: str,
    pattern_of: PatternOf = detect_group,
    progress: Callable[[int, int], None] = lambda done, total: None,
    chooser: Chooser = choose,
    lowering: type[Lowering] | None = None,
) -> LoweredModule:
    """Lower the `main` function of a simplified module.

    Args:
        module: Relax module with static shapes.
        target: whose kernels are chosen from.
        pattern_of: pattern to lower a convolution or linear layer with.
        progress: called with (groups done, groups in all).
        chooser: decides on the kernel of each problem; by default the analytical model.
        lowering: how activations lie in memory; by default as in the model.

    Raises:
        UnsupportedOperatorError: the function has control flow, or an operator without a kernel.
    """
    return (lowering or Lowering)(module, target, pattern_of, progress, chooser).run()


@dataclass(frozen=True, eq=False)
class Found:
    """What `lower_kernels` with the same arguments will do.

    problems: what it will ask its chooser for, in that order.
    leftovers: names of the Relax operators that take TVM's own lowering.
    real: layers of a quantised model that are computed on real numbers, and why; None with a
        sentence for what is no layer.
    """

    problems: list[tuple[Group, Problem]]
    leftovers: list[str]
    real: list[tuple[Group | None, str]]


def find_problems(
    module: Any, pattern_of: PatternOf = detect_group, lowering: type[Lowering] | None = None
) -> Found:
    """Look for what kernels of ours compute.

    Raises:
        UnsupportedOperatorError: the function has control flow.
    """
    return (lowering or Lowering)(module, "", pattern_of, lambda done, total: None, choose).find()


class Lowering:
    """Rewrites the functions of a module over kernels; activations lie as they do in the model.

    Where kernels read and write another form, a subclass says how values get there and back.
    """

    dtype = "float32"  # of what the kernels read and write

    def __init__(
        self,
        module: Any,
        target: str,
        pattern_of: PatternOf,
        progress: Callable[[int, int], None],
        chooser: Chooser,
    ) -> None:
        self._function = module["main"]
        if not isinstance(self._function.body, relax.SeqExpr):
            raise UnsupportedOperatorError(
                "the model's graph has control flow at its top level; expected a plain graph of "
                "operators: export it with the branch taken"
            )
        self._source, self._target = module, target
        self._pattern_of, self._progress, self._chooser = pattern_of, progress, chooser
        # Without the early part, so that its successor can have its name.
        rest = {var: func for var, func in module.functions_items() if var.name_hint != EARLY}
        self._builder = relax.BlockBuilder(tvm.IRModule(rest))
        self._values: dict[Expr, Expr] = {}
        self._functions: dict[str, Any] = {}
        self._vars: list[Expr] = []  # of the entry, behind its inputs
        self._places: dict[Operand, int] = {}  # in `_vars`, by what each is made of
        self._contents: dict[Content, str] = {}  # names of arrays, by what they hold
        self._early: Expr = None  # the function of `lower_batch`
        self._passed_on: list[Expr] = []  # those of `_vars` that it takes
        self._total = 0
        self._result = LoweredModule(None)
        self._early_vars = [var for var in module.get_global_vars() if var.name_hint == EARLY]

    def find(self) -> Found:
        """The groups that get a kernel, in execution order, and the rest."""
        matchers = self._matchers()
        groups = [group for matcher in matchers for group in matcher.groups]
        problems = [(group, self._problem(group)) for group in groups]
        return Found(problems, self._leftovers(matchers), self._real(matchers))

    def run(self) -> LoweredModule:
        """Rewrite the module; once."""
        source, early = self._source, self._early_vars
        matchers = self._matchers()
        self._total = sum(len(matcher.groups) for matcher in matchers)
        self._result.leftovers += self._leftovers(matchers)
        self._result.real += self._real(matchers)
        for var in early:
            inputs, body = self._rewrite(source[var], matchers[0])
            function = relax.Function([*inputs, *self._vars], body, None, is_pure=True)
            self._early = self._builder.add_func(function, EARLY)
        # The entry takes what the early part reads too, to pass it on.
        self._vars = [relax.Var(var.name, var.ty) for var in self._vars]
        self._passed_on = list(self._vars)
        inputs, body = self._rewrite(self._function, matchers[-1])
        attrs = {"global_symbol": "main", "num_input": len(inputs)}
        function = relax.Function([*inputs, *self._vars], body, None, is_pure=True)
        self._builder.update_func(source.get_global_var(ENTRY), function.with_attrs(attrs))
        entries = [ENTRY]
        types = [var.ty for var in self._vars]
        if add_prepare(
            self._builder,
            self._result.params,
            list(zip(self._result.operands, types, strict=True)),
            lambda prepare: self._function_of(prepare, prepare.name),
        ):
            entries.append(PREPARE)
        self._result.module = relax.transform.DeadCodeElimination(entries)(self._builder.get())
        return self._result

    # What a subclass changes.

    def operand(self, group: Group, value: Expr) -> Expr:
        """The activation that a kernel reads, in the form that it reads."""
        return self.substitute(value)

    def result_type(self, group: Group) -> Any:
        """The type of what a kernel writes."""
        return group.out.ty

    def keep(self, group: Group, result: Expr) -> None:
        """Remember what a kernel wrote."""
        self._values[group.out] = self._builder.emit(result)

    def lower_other(self, var: Expr, value: Expr) -> None:
        """Rewrite an operator that no kernel computes."""
        self._values[var] = self._builder.emit(self.substitute(value))

    def known(self, value: Expr) -> Expr | None:
        """The new expression of a variable of the old function, in the model's form, or None."""
        return self._values.get(value)

    # What they have in common.

    def _matchers(self) -> list[Matcher]:
        """Of the early part, if there is one, then of the rest."""
        early = [self._source[var] for var in self._early_vars]
        plain = self.dtype == "float32"
        return [Matcher(func, transformers=plain) for func in (*early, self._function)]

    @staticmethod
    def _leftovers(matchers: list[Matcher]) -> list[str]:
        return [op for matcher in matchers for op in matcher.leftovers() if op not in SPLIT_OPS]

    @staticmethod
    def _real(matchers: list[Matcher]) -> list[tuple[Group | None, str]]:
        layers: list[tuple[Group | None, str]] = [
            (group, reason)
            for matcher in matchers
            for group in matcher.groups
            if (reason := matcher.reason(group))
        ]
        return layers + [(None, said) for matcher in matchers for said in matcher.remarks()]

    def _problem(self, group: Group) -> Problem:
        """What a kernel is to compute."""
        detection = self._pattern_of(group) if group.weight is not None else None
        return Problem(group.spec, group.epilogue, group.weight, group.bias, detection, self.dtype)

    def _rewrite(self, function: Any, matcher: Matcher) -> tuple[list[Expr], Expr]:
        """The inputs of one function and its body over kernels."""
        by_out = {group.out: group for group in matcher.groups}
        inner = {var for group in matcher.groups for var in group.members} - set(by_out)
        builder, inputs = self._builder, list(function.params)
        builder.begin_scope(inputs)
        builder._begin_dataflow_block()
        for block in function.body.blocks:
            for binding in block.bindings:
                if binding.var in by_out:
                    group = by_out[binding.var]
                    self.keep(group, self._kernel(group))
                    self._progress(len(self._result.calls), self._total)
                elif binding.var not in inner:
                    self.lower_other(binding.var, binding.value)
        output = builder.emit_output(self.substitute(function.body.body))
        blocks = [builder._end_block()]
        builder.end_scope()
        return inputs, builder.normalize(relax.SeqExpr(blocks, output))

    def _function_of(self, source: Lowered | Prepare, name: str) -> Any:
        """The global variable of a TIR function, which all that are made alike share.

        Its name says what it was made of, so that other models have it under the same one.
        """
        made_by = source.made_by
        if made_by not in self._functions:
            function = source.emit_func().with_attr(MADE_BY, made_by)
            named = content_name(name, made_by)
            self._functions[made_by] = self._builder.add_func(function, named)
        return self._functions[made_by]

    def _kernel(self, group: Group) -> Expr:
        problem = self._problem(group)
        try:
            choice = self._chooser(group.op, self._target, problem)
        except TargetError as error:
            raise UnsupportedOperatorError(f"{group.op} of {group.spec}: {error}") from error
        # Chosen, and measured, with an output of its own: that makes no difference to the choice.
        written = problem.in_place() if group.overwrites else problem
        lowered = choice.kernel.lower(written, choice.config)
        callee = self._function_of(lowered, choice.kernel.name)
        params = self._kernel_params(len(self._result.calls), lowered)
        residual = [] if group.residual is None else [self.operand(group, group.residual)]
        read = [self._held(self.operand(group, value)) for value in (group.x, *group.others)]
        arguments = relax.Tuple([*read, *params, *residual])
        self._result.calls.append(KernelCall(callee.name_hint, group, problem, choice))
        # Of several outputs the last one counts; memory of the others is free again at once.
        types = [self.result_type(group)]
        if lowered.scratch:
            types.insert(0, relax.TensorType(lowered.scratch, "float32"))
        if group.overwrites:
            places = [*[-1] * len(lowered.scratch[:1]), len(arguments.fields) - 1]
            call = relax.op.call_tir_inplace(callee, arguments, places, types)
        else:
            call = relax.call_tir(callee, arguments, types)
        return relax.TupleGetItem(self._builder.emit(call), 1) if lowered.scratch else call

    def _held(self, value: Expr) -> Expr:
        """A variable for what is still to be computed."""
        return self._builder.emit(value) if isinstance(value, relax.Call) else value

    def _kernel_params(self, index: int, lowered: Lowered) -> list[Expr]:
        """The constant arrays of one kernel, as it reads them."""
        names = {
            name: self._stored(f"{index}.{name}", array) for name, array in lowered.arrays.items()
        }
        params = []
        for operand in lowered.operands:
            prepare = lowered.prepare.get(operand)
            if prepare is None:
                params.append(self.param(names[operand], lowered.arrays[operand]))
                continue
            sources = tuple(names[key] for key in prepare.sources)
            params.append(self._var(names[operand], (prepare.size,), "float32", sources, prepare))
        return params

    def substitute(self, value: Expr) -> Expr:
        """The expression over the new variables, large constants as parameters."""
        found = self.known(value)
        if found is not None:
            return found
        array = constant(value)
        if array is not None:
            if array.nbytes <= INLINE_BYTES:
                return value
            return self.param(f"constant.{len(self._vars)}", array)
        if isinstance(value, relax.Tuple):
            return relax.Tuple([self.substitute(v) for v in value.fields])
        if isinstance(value, relax.TupleGetItem):
            return relax.TupleGetItem(self.substitute(value.tuple_value), value.index)
        if isinstance(value, relax.Call):
            arguments = [self.substitute(a) for a in value.args]
            if is_call_of(value, EARLY):
                return relax.Call(self._early, [*arguments, *self._passed_on])
            return relax.Call(value.op, arguments, value.attrs, value.ty_args)
        return value

    def param(self, name: str, array: Array) -> Expr:
        """A parameter of the entry for an array that is passed on as it is."""
        name = self._stored(name, array)
        return self._var(name, array.shape, str(array.dtype), (name,), None)

    def _stored(self, name: str, array: Array) -> str:
        """The name under which the result has the array: layers that share a weight share it."""
        if array.nbytes > INLINE_BYTES and name not in self._result.params:
            name = self._contents.setdefault(content_of(array), name)
        self._result.params.setdefault(name, array)
        return name

    def _var(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        sources: tuple[str, ...],
        prepare: Prepare | None,
    ) -> Expr:
        """The parameter of the entry that is made so of these arrays of the result."""
        # The entry has variables of its own, in the order of the early part's.
        operand = Operand(sources, prepare)
        place = self._places.setdefault(operand, len(self._vars))
        if place == len(self._vars):
            self._result.operands.append(operand)
            self._vars.append(relax.Var(name, relax.TensorType(shape, dtype)))
        return self._vars[place]
