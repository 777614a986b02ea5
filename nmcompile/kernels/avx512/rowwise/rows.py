"""What stands behind the rows of norms, softmax and positions: the lowerings."""

from __future__ import annotations

from nmcompile.kernels.avx512.rowwise.group_norm import emit_group_norm
from nmcompile.kernels.avx512.rowwise.layer_norm import emit_layer_norm
from nmcompile.kernels.avx512.rowwise.positions import emit_positions
from nmcompile.kernels.avx512.rowwise.softmax import emit_softmax
from nmcompile.kernels.problem import Lowered, Problem
from nmcompile.kernels.spec import GroupNorm, LayerNorm, Positions, Softmax


def lower_layer_norm(name: str, problem: Problem, config: None) -> Lowered:
    """Layer norm over the last axes."""
    spec = problem.spec
    assert isinstance(spec, LayerNorm)
    return Lowered(emit_layer_norm, (name, spec), {})


def lower_group_norm(name: str, problem: Problem, config: None) -> Lowered:
    """Group norm and instance norm, with the activation behind it."""
    spec = problem.spec
    assert isinstance(spec, GroupNorm)
    return Lowered(emit_group_norm, (name, spec, problem.epilogue.activation), {})


def lower_softmax(name: str, problem: Problem, config: None) -> Lowered:
    """Softmax along any axis."""
    spec = problem.spec
    assert isinstance(spec, Softmax)
    return Lowered(emit_softmax, (name, spec), {})


def lower_positions(name: str, problem: Problem, config: None) -> Lowered:
    """Positions of maxima and minima."""
    spec = problem.spec
    assert isinstance(spec, Positions)
    return Lowered(emit_positions, (name, spec), {})
