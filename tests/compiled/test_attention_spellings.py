"""Attention in random spellings: the kernel that is found computes what the graph does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.support.written_relax import Var, Written

# Equal extents are where an exchange of axes would pass for another one.
EXTENTS = st.sampled_from([1, 2, 3, 3, 3, 5])


class Spelling:
    """Draws one way of writing softmax(q k^T) v, and writes it."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.w = Written()
        self.random = np.random.default_rng(self.draw(st.integers(0, 99)))
        self.batch, self.groups, self.share, *rest = (self.draw(EXTENTS) for _ in range(7))
        self.queries, self.keys, self.size, self.value_size = rest
        self.heads = self.groups * self.share

    def flag(self) -> bool:
        return bool(self.draw(st.booleans()))

    def operand(self, tokens: int, features: int, heads: int) -> Var:
        """(batch, heads, tokens, features), of axes in another order in memory."""
        order = self.draw(st.permutations("bhtf"))
        extents = {"b": self.batch, "h": heads, "t": tokens, "f": features}
        var = self.w.given(self.random.standard_normal([extents[axis] for axis in order]))
        return self.w.permuted(var, [order.index(axis) for axis in "bhtf"])

    def shared(self, x: Var) -> Var:
        """Heads of keys or values, each as often as queries share it."""
        batch, groups, *matrix = self.w.values[x].shape
        apart = self.w.reshaped(x, (batch, groups, 1, *matrix))
        apart = self.w.repeated(apart, (batch, groups, self.share, *matrix))
        return self.w.reshaped(apart, (batch, self.heads, *matrix))

    def product(self, a: Var, b: Var, turned: bool) -> Var:
        """a @ b, or b^T @ a^T; in four axes or three."""
        if turned:
            a, b = self.w.turned(b), self.w.turned(a)
        if not self.flag():
            return self.w.product(a, b)
        pairs = self.batch * self.heads
        a, b = (self.w.reshaped(x, (pairs, *self.w.values[x].shape[2:])) for x in (a, b))
        made = self.w.product(a, b)
        return self.w.reshaped(made, (self.batch, self.heads, *self.w.values[made].shape[1:]))

    def moved(self, x: Var, turned: bool) -> tuple[Var, bool]:
        """With rows and columns exchanged or not, and through shapes of no meaning."""
        w, shape = self.w, self.w.values[x].shape
        if self.flag():  # with an axis of 1, as einsum has it
            x = w.reshaped(w.turned(w.reshaped(x, (*shape[:3], 1, shape[3]))), shape)
        if self.flag():
            x = w.reshaped(w.reshaped(x, (shape[0] * shape[1] * shape[2], shape[3])), shape)
        return (w.turned(x), not turned) if self.flag() else (x, turned)

    def masked(self, x: Var, turned: bool) -> Var:
        """With a bias, or with keys that are hidden, repeated along any axes."""
        full = (self.batch, self.heads, self.queries, self.keys)
        shape = [extent if self.flag() else 1 for extent in full]
        hides = self.flag()
        array = self.random.standard_normal(shape)
        mask = self.w.given(array > 0 if hides else array)
        mask = self.w.turned(mask) if turned else mask
        return self.w.selected(mask, x, -3.0) if hides else self.w.sum(x, mask)

    def written(self) -> Var:
        w = self.w
        q = self.operand(self.queries, self.size, self.heads)
        k = self.shared(self.operand(self.keys, self.size, self.groups))
        v = self.shared(self.operand(self.keys, self.value_size, self.groups))
        q = w.scaled(q, 0.5) if self.flag() else q
        turned = self.flag()
        x, turned = self.moved(self.product(q, w.turned(k), turned), turned)
        x = w.scaled(x, 0.25) if self.flag() else x
        if self.flag():
            x = self.masked(x, turned)
        x, turned = self.moved(x, turned)
        x, turned = self.moved(w.softmax(x, -2 if turned else -1), turned)
        right = self.flag()
        x = x if right == turned else w.turned(x)
        return self.result(x, v, right)

    def result(self, weights: Var, v: Var, right: bool) -> Var:
        """The second product, and axes in another order behind it."""
        w = self.w
        y = w.product(w.turned(v), weights) if right else w.product(weights, v)
        return w.permuted(y, self.draw(st.permutations(range(4)))) if self.flag() else y


@examples(150)
@given(data=st.data())
def test_random_spellings_are_found_and_right(data: st.DataObject) -> None:
    spelling = Spelling(data)
    result = spelling.written()
    matcher = spelling.w.matcher(result)
    (group,) = matcher.groups
    assert group.op == "attention"
    assert not {"broadcast_to", "multiply", "add", "where"}.intersection(matcher.leftovers())
    found = spelling.w.attention(group)
    np.testing.assert_allclose(found, spelling.w.values[group.out], rtol=1e-6, atol=1e-9)


def test_rows_that_see_nothing_are_zeros_as_torchs_exports_write_it() -> None:
    w = Written()
    q, k, v = (w.given(np.random.default_rng(i).standard_normal((2, 3, 4, 5))) for i in range(3))
    mask = w.given(np.where(np.eye(4) > 0, -np.inf, np.where(np.arange(4) == 2, -np.inf, 0)).T)
    weights = w.softmax(w.sum(w.product(q, w.turned(k)), mask), -1)
    result = w.product(w.zero_for_nan(weights), v)
    (group,) = w.matcher(result).groups
    assert np.isnan(w.values[weights]).any()
    np.testing.assert_allclose(w.attention(group), w.values[result], rtol=1e-6)


@pytest.mark.parametrize("what", ["scores", "weights", "mask"])
def test_what_is_read_twice_inside_is_not_fused(what: str) -> None:
    """The kernel could not read it: it is computed inside of the kernel alone."""
    w = Written()
    x, v = (w.given(np.random.default_rng(i).standard_normal((2, 3, 4, 4))) for i in range(2))
    scores = w.product(x, w.turned(x))
    if what == "scores":
        scores = w.sum(scores, scores)
    elif what == "mask":
        scores = w.sum(scores, w.turned(scores))
    weights = w.softmax(scores, -1)
    result = w.product(weights, weights if what == "weights" else v)
    found = [group.op for group in w.matcher(result).groups]
    assert found == ["product", "softmax", "product"]
