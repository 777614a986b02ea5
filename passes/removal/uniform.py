"""Channels that hold one number, whatever the model reads."""

import numpy as np

from nmcompile.passes.graphs.interface import Array, Graph, Op, Value


def uniform_channels(graph: Graph) -> dict[Value, Array]:
    """The numbers that channels hold everywhere, for every input of the model.

    For tensors of known shape whose axis 1 is that of channels: float64 (C,), NaN where a channel
    depends on the input, differs from place to place, or is not known.

    0 times anything is 0: inputs for which a tensor holds NaN or infinities are left out of
    account, as kernels leave them that skip zeros.

    1. A filter of zeros makes its bias of anything; one that reads channels of one number makes
       another of them, if no padding comes between.
    2. Batch norms, pointwise and elementwise operators compute it; a product with 0 is 0.
    3. Concatenation and flattening put the channels of what they read in a row.
    """
    finder = _Finder(graph)
    with np.errstate(all="ignore"):
        for op in graph.ops():
            found = finder.channels(op)
            if found is not None and not np.isnan(found).all():
                found[~np.isfinite(found)] = np.nan
                finder.known[op.output] = found
    return finder.known


class _Finder:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.known: dict[Value, Array] = {}

    def channels(self, op: Op) -> Array | None:
        shape = self.graph.shape(op.output)
        if shape is None or len(shape) < 2:
            return None
        if op.kind in ("conv", "linear"):
            return self._layer(op)
        if op.flow.kind == "elementwise":
            return self._elementwise(op, shape)
        if op.flow.kind == "concat" and op.flow.axes == (1,):
            parts = [self._of(value) for value in op.inputs]
            return np.concatenate(parts) if all(len(part) for part in parts) else None
        if not op.flow.by_channel and op.flow.kind != "reshape":
            return None
        source = self.graph.shape(op.inputs[0])
        if source is None or len(source) < 2:
            return None
        numbers = self._of(op.inputs[0])
        if op.affine is not None:
            return np.where(op.affine.scale == 0, 0.0, op.affine.scale * numbers) + op.affine.shift
        if np.isnan(numbers).all():
            return None
        if op.flow.kind == "reshape":
            return _reshaped(numbers, source, shape)
        return self._channelwise(op, numbers, shape)

    def _of(self, value: Value) -> Array:
        """What is known of a tensor; () where its channels are not."""
        if value in self.known:
            return self.known[value]
        shape = self.graph.shape(value)
        return np.full(shape[1] if shape is not None and len(shape) > 1 else 0, np.nan)

    def _layer(self, op: Op) -> Array | None:
        assert op.weight is not None
        source = self.graph.shape(op.inputs[0])
        if source is None or len(source) != op.weight.ndim:
            return None  # of other ranks axis 1 is not what a matrix product reads
        weights = op.weight.reshape(op.groups, -1, *op.weight.shape[1:])
        numbers = self._of(op.inputs[0]).reshape(op.groups, -1)
        made = np.concatenate(
            [_products(*pair, op.padded) for pair in zip(weights, numbers, strict=True)]
        )
        return made if op.bias is None else made + op.bias

    def _channelwise(self, op: Op, numbers: Array, shape: tuple[int, ...]) -> Array | None:
        if op.kind == "identity" or op.uniform == "kept":
            return numbers.copy()
        if op.uniform == "zero":
            return np.where(numbers == 0, 0.0, np.nan)
        return self._evaluated(op, shape) if op.uniform == "pointwise" else None

    def _elementwise(self, op: Op, shape: tuple[int, ...]) -> Array | None:
        """What is computed of known channels, and zero where a factor is."""
        known, zero = np.ones(shape[1], bool), np.zeros(shape[1], bool)
        for value in op.inputs:
            constant = self.graph.constant(value)
            if constant is not None:
                numbers = _of_constant(constant, len(shape))
            elif len(self.graph.shape(value) or ()) == len(shape):
                numbers = self._of(value)
            else:
                numbers = np.full(1, np.nan)
            if len(numbers) not in (1, shape[1]):
                return None
            known &= ~np.isnan(numbers) | (constant is not None)
            zero |= numbers == 0
        made = self._evaluated(op, shape) if known.any() else None
        made = np.full(shape[1], np.nan) if made is None else np.where(known, made, np.nan)
        return np.where(zero, 0.0, made) if op.product else made

    def _evaluated(self, op: Op, shape: tuple[int, ...]) -> Array | None:
        """What the operator makes of channels of one element; unknown ones are of no account."""
        feeds = {}
        for value in op.inputs:
            if self.graph.constant(value) is not None:
                continue
            numbers = self._of(value)
            if not len(numbers):
                return None
            feeds[value] = np.nan_to_num(numbers).reshape(1, -1, *[1] * (len(shape) - 2))
        found = self.graph.evaluate(op, feeds)
        if found is None or found.ndim != len(shape) or found.shape[1] != shape[1]:
            return None
        rows = np.moveaxis(found, 1, 0).reshape(shape[1], -1).astype(np.float64)
        one = (rows == rows[:, :1]).all(1)
        numbers = self._of(op.inputs[0]) if op.flow.by_channel else np.zeros(shape[1])
        return np.where(one & ~np.isnan(numbers), rows[:, 0], np.nan)


def _products(weight: Array, numbers: Array, padded: bool) -> Array:
    """What filters (O, I, ...) make of input channels; a padded one is not the same everywhere."""
    plain = numbers == 0 if padded else ~np.isnan(numbers)
    rows = weight.reshape(*weight.shape[:2], -1)
    counted = np.flatnonzero(plain & (numbers != 0))
    made = rows[:, counted].sum(2, dtype=np.float64) @ numbers[counted]
    others = rows if not plain.any() else rows[:, ~plain]
    return np.where(others.any((1, 2)), np.nan, made)


def _of_constant(array: Array, rank: int) -> Array:
    """The numbers of an operand's channels, NaN where one has several; (1,) if they are alike."""
    axis = array.ndim - rank + 1
    if axis < 0 or array.shape[axis] == 1:
        flat = array.reshape(1, -1)
    else:
        flat = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    one = (flat == flat[:, :1]).all(1) if flat.size else np.zeros(len(flat), bool)
    return np.where(one, flat[:, 0] if flat.size else 0, np.nan).astype(np.float64)


def _reshaped(numbers: Array, source: tuple[int, ...], shape: tuple[int, ...]) -> Array | None:
    if shape[:2] == source[:2]:
        return numbers.copy()
    if len(shape) == 2 and shape[0] == source[0]:
        return np.repeat(numbers, shape[1] // source[1])
    return None
