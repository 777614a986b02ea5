"""ONNX's backend tests: each is right, or refused by a sentence that names what is in the way."""

import re
import zlib
from collections.abc import Sequence

import pytest

from tests.conformance import verdicts
from tests.conformance.cases import Case, load_cases
from tests.conformance.judge import (
    ALIKE,
    FIXED,
    FOREIGN,
    REFUSED,
    RIGHT,
    SHARED,
    WRONG,
    Verdict,
)
from tests.conformance.older import older
from tests.conformance.workers import judge_all

SHARE = 32
"""One in so many tests is a part of every run."""


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return load_cases()


def names_the_place(case: Case, verdict: Verdict) -> bool:
    """Whether a refusal names one of the test's operators, nodes or inputs."""
    graph = case.model.graph
    names = {value.name for value in (*graph.input, *graph.output)}
    names |= {name for node in graph.node for name in (node.op_type, node.name, *node.output)}
    text = verdict.text
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in names if name)


def check(cases: Sequence[Case]) -> None:
    committed = verdicts.read()
    problems = []
    for case, verdict in judge_all(cases):
        expected = committed.get(case.name)
        if verdict.outcome != expected:
            problems.append(
                f"{case.name}: committed is {expected}, found {verdict.outcome}: {verdict.text}"
            )
        elif verdict.outcome == REFUSED and not names_the_place(case, verdict):
            problems.append(f"{case.name}: names nothing of the model: {verdict.text}")
    assert not problems, "\n".join([*problems, verdicts.AGAIN])


def test_a_share_of_the_backend_tests_comes_to_what_is_committed(cases: list[Case]) -> None:
    check([case for case in cases if zlib.crc32(case.name.encode()) % SHARE == 0])


@pytest.mark.long
def test_all_backend_tests_come_to_what_is_committed(cases: list[Case]) -> None:
    check(cases)


@pytest.mark.long
def test_older_versions_of_the_operators_are_right_or_refused(cases: list[Case]) -> None:
    committed = verdicts.read()
    aged = [old for case in cases if committed[case.name] in (RIGHT, FIXED) for old in older(case)]
    assert len(aged) > 1000
    found = {case.name: verdict for case, verdict in judge_all(aged)}
    faults = {n: v.text for n, v in found.items() if v.outcome in (WRONG, FOREIGN)}
    assert not faults


def test_no_backend_test_is_committed_as_wrong(cases: list[Case]) -> None:
    outcomes = verdicts.read()
    assert set(outcomes) == {case.name for case in cases}, verdicts.AGAIN
    assert set(outcomes.values()) == {RIGHT, FIXED, SHARED, ALIKE, REFUSED}


def test_the_page_of_operators_is_what_the_tables_say(cases: list[Case]) -> None:
    page = verdicts.page(verdicts.read(), cases)
    assert verdicts.PAGE.read_text() == page, verdicts.AGAIN
