"""LSTM and GRU as a product for all steps, and the steps, which are an operator of our own.

Taken are float32 with the activations that are the default, whole sequences, the batch as the
second axis, and constant weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from nmcompile.kernels.recurrence import GATES, RecurrentKind
from nmcompile.passes.graphs.interface import Array
from nmcompile.passes.operators.onnx.contributed.writing import Writing
from nmcompile.passes.operators.onnx.limits import attribute, operand
from nmcompile.passes.operators.onnx.rewriting import Form, Reason, form

OURS = "nmcompile"
"""The domain of the operator of our own."""
STEPS = "RecurrentSteps"
"""Reads x with the products of the inputs in it, the weight, the bias, and the first states."""

DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
ACTIVATIONS: dict[RecurrentKind, tuple[str, ...]] = {
    "lstm": ("sigmoid", "tanh", "tanh"),
    "gru": ("sigmoid", "tanh"),
}


def rewrite_lstm(new: Writing) -> None:
    """LSTM without peepholes."""
    new.expect("input_forget", 0)
    new.refuse_inputs(P=7)
    layer = _Layer(new, "lstm")
    first = layer.states(initial_h=5, initial_c=6)
    cells = new.wants(2)
    out = layer.steps(first, None, cells)
    last = out
    if cells:
        steps = layer.extents[0]
        last = layer.part(out, steps, steps + 1)
        out = layer.part(out, 0, steps)
    layer.finish(out, layer.turned(last, layer.states_shape) if cells else None)


def rewrite_gru(new: Writing) -> None:
    """GRU, which resets its state behind its product, as torch writes it, or in front of it."""
    layer = _Layer(new, "gru")
    first = layer.states(initial_h=5)
    layer.finish(layer.steps(first, layer.behind_reset, False), None)


class _Layer:
    """What both have in common."""

    def __init__(self, new: Writing, kind: RecurrentKind) -> None:
        self._new, self._kind, gates = new, kind, GATES[kind]
        self._direction = str(attribute(new.node, "direction", "forward"))
        directions = DIRECTIONS.get(self._direction, 0)
        before = attribute(new.node, "linear_before_reset", 0)
        self._reset_first = kind == "gru" and not before
        new.expect("layout", 0)
        self._check_attributes(directions)
        self._x = new.given(0, "X")
        self.extents = new.extents(self._x)
        weight, self._recurrent = self._matrix(1, "W"), self._matrix(2, "R")
        if len(self.extents) != 3:
            raise Reason(f"its X has {len(self.extents)} dimensions, not 3")
        hidden = self._recurrent.shape[-1]
        shapes = (directions, gates * hidden, self.extents[2]), (directions, gates * hidden, hidden)
        if (weight.shape, self._recurrent.shape) != shapes:
            raise Reason(f"its weights are of shape {weight.shape} and {self._recurrent.shape}")
        self._hidden, self._directions = hidden, directions
        self._weight = weight.reshape(-1, self.extents[2])
        self._check_lengths()
        self._add_biases(gates)

    def _check_attributes(self, directions: int) -> None:
        given = attribute(self._new.node, "activations", ())
        wanted = ACTIVATIONS[self._kind] * directions
        if given and tuple(str(name).lower() for name in given) != wanted:
            raise Reason(f"its activations are {', '.join(map(str, given)):.60}")
        for name in ("activation_alpha", "activation_beta", "clip"):
            if (found := attribute(self._new.node, name)) not in (None, ()):
                raise Reason(f"its {name} is {found!r:.60}")

    def _matrix(self, index: int, name: str) -> Array:
        self._new.given(index, name)
        found = self._new.known(index, name)
        assert found is not None
        return found

    def _check_lengths(self) -> None:
        lengths = self._new.known(4, "sequence_lens")
        if lengths is not None and (lengths != self.extents[0]).any():
            raise Reason("its sequences are of different lengths")

    def _add_biases(self, gates: int) -> None:
        """Those of all gates, but for what a GRU adds in front of the reset."""
        rows, directions = gates * self._hidden, self._directions
        self._bias = np.zeros((directions, rows), np.float32)
        self.behind_reset: Array | None = None
        if operand(self._new.node, 3) is None:
            return
        found = self._matrix(3, "B")
        if found.shape != (directions, 2 * rows):
            raise Reason(f"its B is of shape {found.shape}, not {(directions, 2 * rows)}")
        self._bias, more = found[:, :rows].copy(), found[:, rows:].copy()
        if self._kind == "gru" and not self._reset_first:
            last = more[:, -self._hidden :]
            self.behind_reset = last.reshape(-1).copy() if last.any() else None
            last[:] = 0
        self._bias += more

    @property
    def states_shape(self) -> tuple[int, int, int]:
        """Of states and cells, as ONNX has them."""
        return self._directions, self.extents[1], self._hidden

    def states(self, **names: int) -> list[ir.Value | None]:
        """What it begins with; nothing where that is zeros."""
        new = self._new
        found = [new.maybe(index, name) for name, index in names.items()]
        for place, value in enumerate(found):
            held = None if value is None else new.graph.constant(value)
            if value is not None and new.extents(value) != self.states_shape:
                raise Reason(f"its {list(names)[place]} is of shape {new.extents(value)}")
            if held is not None and not held.any():
                found[place] = None
        if all(value is None for value in found):
            return [None] * len(found)
        zeros = np.zeros(self.states_shape, np.float32)
        return [new.constant(zeros) if value is None else value for value in found]

    def steps(self, first: list[ir.Value | None], bias: Array | None, cells: bool) -> ir.Value:
        """The states of all steps, (steps, batch, directions, hidden), and the last cells."""
        new, (steps, batch, _) = self._new, self.extents
        x = new.add("MatMul", self._x, new.constant(np.ascontiguousarray(self._weight.T)))
        if self._bias.any():
            x = new.add("Add", x, new.constant(self._bias.reshape(-1)))
        weight = new.constant(self._recurrent.reshape(-1, self._hidden))
        more = None if bias is None else new.constant(bias)
        flags = {"cells": int(cells), "reset_first": int(self._reset_first)}
        words = {"kind": self._kind, "direction": self._direction, **flags}
        out = new.add(STEPS, x, weight, more, *first, **words)
        maker = out.producer()
        assert maker is not None
        maker.domain = OURS
        out.shape = ir.Shape((steps + cells, batch, self._directions, self._hidden))
        new.graph.model.graph.opset_imports.setdefault(OURS, 1)
        return out

    def part(self, value: ir.Value, begin: int, end: int, direction: int | None = None) -> ir.Value:
        """Some steps, of all directions or of one."""
        new, each = self._new, direction is not None
        bounds = [[begin, direction or 0], [end, (direction or 0) + 1], [0, 2]]
        chosen = (np.asarray(row[: 1 + each], np.int64) for row in bounds)
        return new.add("Slice", value, *map(new.constant, chosen))

    def turned(self, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """(steps, batch, directions, hidden) with directions in front of the batch, as `shape`."""
        if self._directions > 1:
            value = self._new.add("Transpose", value, perm=[0, 2, 1, 3])
        return self._new.reshaped(value, *shape)

    def finish(self, out: ir.Value, cells: ir.Value | None) -> None:
        """Give the readers of Y, Y_h and Y_c theirs."""
        new, (steps, batch, _) = self._new, self.extents
        rows = (steps, batch, self._hidden)
        last: ir.Value | None = None
        if new.wants(1):
            ends = [0] if self._direction == "reverse" else [steps - 1, 0]
            parts = [
                new.reshaped(self.part(out, end, end + 1, direction), 1, batch, self._hidden)
                for direction, end in enumerate(ends[: self._directions])
            ]
            last = parts[0] if len(parts) == 1 else new.add("Concat", *parts, axis=0)
        for user, _ in list(new.node.outputs[0].uses()):
            # Exporters exchange directions and batch, as they lie here, or drop the one direction.
            if user.op_type == "Transpose" and attribute(user, "perm") == (0, 2, 1, 3):
                new.graph.replace(user.outputs[0], out)
            elif user.op_type == "Squeeze" and new.graph.shape(user.outputs[0]) == rows:
                new.graph.replace(user.outputs[0], new.reshaped(out, *rows))
        shape = (steps, self._directions, batch, self._hidden)
        new.finish_all(self.turned(out, shape), last, cells)


def _form(rewrite: Any) -> Form:
    return form(Writing, rewrite)


RECURRENT: dict[str, Form] = {"GRU": _form(rewrite_gru), "LSTM": _form(rewrite_lstm)}
"""By operator."""
