"""What a recurrent kernel is asked to compute: the steps of an LSTM or GRU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

RecurrentKind = Literal["lstm", "gru"]
Direction = Literal["forward", "reverse", "bidirectional"]
GATES: Mapping[RecurrentKind, int] = {"lstm": 4, "gru": 3}
"""Rows of a weight for one hidden number: i, o, f, c of an LSTM and z, r, h of a GRU, as ONNX."""


@dataclass(frozen=True)
class Recurrent:
    """The steps of an LSTM or GRU whose products with the inputs are there.

    x (steps, batch, rows) holds these with all biases but one; the weight R is (rows, hidden), rows
    being directions x gates x hidden. With u = x + R h, h the state of the step before:

    lstm: c = sigmoid(u_f) c + sigmoid(u_i) tanh(u_c), h = sigmoid(u_o) tanh(c).
    gru: n = tanh(x_h + sigmoid(u_r) (R_h h + bias)), h = n + sigmoid(u_z) (h - n): the state is
        reset behind its product, as torch does and ONNX with `linear_before_reset`.

    reset_first: whether a GRU resets it in front of that: n = tanh(x_h + R_h (sigmoid(u_r) h)).
    initial: whether it begins with given states (directions, batch, hidden), and an LSTM with given
        cells; else both are 0.
    cells: whether those of an LSTM's last step stand behind the output, as one more step.

    The output is (steps, batch, directions, hidden); a reverse direction begins at the last step.
    """

    kind: RecurrentKind
    steps: int
    batch: int
    hidden: int
    direction: Direction = "forward"
    initial: bool = False
    cells: bool = False
    reset_first: bool = False

    @property
    def directions(self) -> int:
        """How many."""
        return 2 if self.direction == "bidirectional" else 1

    @property
    def gates(self) -> int:
        """Rows of the weight for one hidden number."""
        return GATES[self.kind]

    @property
    def rows(self) -> int:
        """Of the weight."""
        return self.directions * self.gates * self.hidden

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """Of x."""
        return self.steps, self.batch, self.rows

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """Of what it begins with."""
        return self.directions, self.batch, self.hidden

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """Of the output."""
        return self.steps + self.cells, self.batch, self.directions, self.hidden

    @property
    def macs(self) -> int:
        """Dense multiply-accumulates of one call."""
        return self.steps * self.batch * self.rows * self.hidden
