"""Spelling and validation of patterns."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmcompile.errors import PatternError
from nmcompile.sparsity import (
    NM,
    Dense,
    OneByN,
    Pattern,
    Unstructured,
    Wanted,
    parse_pattern,
    parse_wanted,
)

nm_patterns = st.integers(1, 32).flatmap(
    lambda m: st.builds(NM, st.integers(1, m), st.just(m), st.sampled_from(["ic", "flat", "ohwi"]))
)
patterns: st.SearchStrategy[Pattern] = st.one_of(
    st.just(Dense()), st.just(Unstructured()), nm_patterns, st.builds(OneByN, st.integers(1, 64))
)


@given(patterns)
def test_parse_is_the_inverse_of_str(pattern: Pattern) -> None:
    assert parse_pattern(str(pattern)) == pattern


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("dense", Dense()),
        ("unstructured", Unstructured()),
        ("2:4", NM(2, 4)),
        ("2:4@flat", NM(2, 4, "flat")),
        ("2:4@ohwi", NM(2, 4, "ohwi")),
        ("1x16", OneByN(16)),
        (" 2:4@IC ", NM(2, 4)),
    ],
)
def test_spellings(text: str, pattern: Pattern) -> None:
    assert parse_pattern(text) == pattern


@given(st.one_of(st.builds(OneByN, st.integers(1, 64)), st.just(Unstructured())), st.data())
def test_the_share_to_keep_stands_behind_a_pattern(pattern: Pattern, data: st.DataObject) -> None:
    density = data.draw(st.integers(1, 1000)) / 1000
    wanted = parse_wanted(f" {pattern}@{density} ".upper())
    assert (wanted.pattern, wanted.density) == (pattern, density)
    assert parse_wanted(str(wanted)) == wanted


@given(patterns)
def test_the_share_may_be_left_out(pattern: Pattern) -> None:
    assert parse_wanted(str(pattern)) == Wanted(pattern)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1x16@1.5", "above 0 and at most 1, found 1.5"),
        ("1x16@0", "found 0"),
        ("1x16@-0.5", "found -0.5"),
        ("unstructured@nan", "found nan"),
        ("1x16@0.5.5", r"found 0\.5\.5"),
        ("1x16@", "not understood"),
        ("2:4@0.5", "says itself how much is kept; write 2:4"),
        ("2:4@flat@0.5", "write 2:4@flat"),
        ("dense@1", "write dense"),
    ],
)
def test_a_share_that_is_none_is_named(text: str, said: str) -> None:
    with pytest.raises(PatternError, match=f"{text}.*{said}"):
        parse_wanted(text)


@pytest.mark.parametrize(
    "text", ["", "sparse", "2:4:8", "2x16", "1x", "-1:4", "2:4@", "1x0", "1x65", "0:4", "5:4"]
)
def test_text_that_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(PatternError):
        parse_pattern(text)


def test_refusal_quotes_the_text_and_shows_what_is_understood() -> None:
    with pytest.raises(PatternError, match=r"'two-four'.*2:4.*1x16"):
        parse_pattern("two-four")


def test_unknown_axis_is_named() -> None:
    with pytest.raises(PatternError, match=r"'oc'.*'ic'.*'flat'"):
        parse_pattern("2:4@oc")


@pytest.mark.parametrize(("n", "m"), [(0, 4), (-1, 4), (5, 4), (2, 33), (0, 0)])
def test_nm_out_of_range_is_refused(n: int, m: int) -> None:
    with pytest.raises(PatternError, match=f"{n}:{m}"):
        NM(n, m)


def test_nm_with_unknown_axis_is_refused() -> None:
    axis: Any = "oc"
    with pytest.raises(PatternError, match="'oc'"):
        NM(2, 4, axis)


@pytest.mark.parametrize("n", [0, -1, 65])
def test_block_size_out_of_range_is_refused(n: int) -> None:
    with pytest.raises(PatternError, match=f"1x{n}"):
        OneByN(n)


def test_keeping_all_of_a_group_is_a_legal_pattern() -> None:
    assert str(NM(4, 4)) == "4:4"
