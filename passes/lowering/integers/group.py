"""One operator on integers and what is fused into it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.integers import Integers
from nmcompile.kernels.spec import Activation
from nmcompile.passes.graphs.quantised import QuantisedConstant
from nmcompile.passes.lowering.integers.values import Quantisation
from nmcompile.passes.lowering.matching.match import Group


@dataclass(eq=False)
class IntegerGroup(Group):
    """A group whose kernel reads or writes integers.

    source: what its activation means; None where that is real numbers. weights: the integers of
    its weight. target: what its output means; None where that is real numbers. middle: what the
    sum is rounded to before the residual, behind `middle_activation`. late_bias: real numbers added
    there, of each output. added: what the residual means; None where that is real numbers.
    table: 256 bytes. rows: whether its bytes lie as in the model, not as (N, H, W, C).
    """

    source: Quantisation | None = None
    weights: QuantisedConstant | None = None
    target: Quantisation | None = None
    middle: Quantisation | None = None
    middle_activation: Activation = field(default_factory=Activation)
    late_bias: npt.NDArray[np.float32] | None = None
    added: Quantisation | None = None
    table: npt.NDArray[np.uint8] | None = None
    integers: Integers | None = None
    rows: bool = False

    @property
    def adds_real(self) -> bool:
        """Whether there is a residual of real numbers."""
        return self.residual is not None and self.added is None

    @property
    def model_weight(self) -> npt.NDArray[Any] | None:
        """The weight as it stands in the model's graph."""
        if self.weights is None:
            return None
        real = self.weights.real
        return real if self.op == "conv2d" else np.ascontiguousarray(real.T)
