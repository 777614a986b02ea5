"""Who computes what: segments run one after the other, and nothing is ours that does not pay."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nmcompile.segments.cut import Cost, Segment, Task, cut
from tests.support.examples import examples

FREE = Cost(per_tensor=0, per_byte=0.0)


def task(
    able: str,
    edges: dict[int, list[int]],
    work: dict[int, int],
    sizes: dict[int, int] | None = None,
) -> Task:
    """Nodes "o" (can be ours) and "r"; node i makes the tensor "i" and reads those of `edges`."""
    return Task(
        able=[letter == "o" for letter in able],
        reads=[[str(other) for other in edges.get(index, [])] for index in range(len(able))],
        makers={str(index): index for index in range(len(able))},
        sizes={str(index): size for index, size in (sizes or {}).items()},
        work=[work.get(index, 0) for index in range(len(able))],
    )


def chain(able: str, work: dict[int, int], sizes: dict[int, int] | None = None) -> Task:
    return task(able, {index: [index - 1] for index in range(1, len(able))}, work, sizes)


def spell(segments: list[Segment]) -> list[tuple[str, tuple[int, ...]]]:
    return [("ours" if segment.ours else "rest", segment.nodes) for segment in segments]


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    count = draw(st.integers(1, 14))
    edges = {
        index: draw(st.lists(st.integers(0, index - 1), max_size=3, unique=True))
        for index in range(1, count)
    }
    able = draw(st.text("or", min_size=count, max_size=count))
    sizes = draw(st.lists(st.sampled_from([4, 400, 40_000]), min_size=count, max_size=count))
    work = {
        index: draw(st.sampled_from([0, 1, 10**5, 10**7]))
        for index, letter in enumerate(able)
        if letter == "o"
    }
    return task(able, edges, work, dict(enumerate(sizes)))


@examples(300)
@given(tasks())
def test_every_node_runs_once_behind_all_that_it_reads(given_: Task) -> None:
    segments = cut(given_)
    order = [index for segment in segments for index in segment.nodes]
    assert sorted(order) == list(range(len(given_.able)))
    place = {index: position for position, index in enumerate(order)}
    for index, names in enumerate(given_.reads):
        assert all(place[given_.makers[name]] < place[index] for name in names)


@examples(300)
@given(tasks())
def test_sides_take_turns_and_ours_holds_only_what_can_be(given_: Task) -> None:
    segments = cut(given_)
    sides = [segment.ours for segment in segments]
    assert all(one != other for one, other in pairwise(sides))
    for segment in segments:
        assert not segment.ours or all(given_.able[index] for index in segment.nodes)


@examples(300)
@given(tasks())
def test_what_is_ours_has_work_unless_all_is(given_: Task) -> None:
    segments = cut(given_)
    if not all(given_.able):
        for segment in segments:
            assert not segment.ours or any(given_.work[index] > 0 for index in segment.nodes)


@examples(300)
@given(tasks())
def test_with_work_on_our_side_something_stays_ours(given_: Task) -> None:
    assert any(segment.ours for segment in cut(given_)) == (
        all(given_.able) or sum(given_.work) > 0
    )


@examples(300)
@given(tasks())
def test_where_crossing_is_free_no_work_is_given_away(given_: Task) -> None:
    ours = {index for segment in cut(given_, FREE) if segment.ours for index in segment.nodes}
    assert ours >= {index for index, work in enumerate(given_.work) if work}


def test_an_idle_piece_between_others_is_given_to_them() -> None:
    found = cut(chain("ororo", {0: 10**9}))
    assert spell(found) == [("ours", (0,)), ("rest", (1, 2, 3, 4))]


def test_a_piece_pays_if_its_work_does() -> None:
    small, large = ({0: 10**9, 2: work} for work in (10_000, 10**8))
    assert spell(cut(chain("oro", small))) == [("ours", (0,)), ("rest", (1, 2))]
    assert spell(cut(chain("oro", large))) == [("ours", (0,)), ("rest", (1,)), ("ours", (2,))]


def test_large_tensors_make_crossing_dear() -> None:
    work, sizes = {0: 10**9, 2: 10**7}, {1: 10**9, 0: 4, 2: 4}
    assert spell(cut(chain("oro", work, sizes))) == [("ours", (0,)), ("rest", (1, 2))]


def test_the_only_piece_with_work_stays_however_little_it_is() -> None:
    assert spell(cut(chain("ror", {1: 1}))) == [("rest", (0,)), ("ours", (1,)), ("rest", (2,))]


def test_branches_run_together_in_as_few_segments_as_can_be() -> None:
    # 0 -> 1(rest) -> 2 and 3 -> 4(rest): both parts for the rest are one.
    given_ = task("orooro", {1: [0], 2: [1], 3: [], 4: [3], 5: [4, 2]}, {0: 1, 2: 1, 3: 1, 5: 1})
    assert spell(cut(given_, FREE)) == [("ours", (0, 3)), ("rest", (1, 4)), ("ours", (2, 5))]


def test_a_part_of_the_rest_that_needs_nothing_of_ours_runs_first() -> None:
    found = cut(chain("roo", {1: 10**9}))
    assert spell(found) == [("rest", (0,)), ("ours", (1, 2))]


def test_integers_cross_and_not_what_they_stand_for() -> None:
    # conv, quantize | dequantize, rest, quantize | dequantize, conv
    sizes = {0: 400, 1: 100, 2: 400, 3: 400, 4: 100, 5: 400, 6: 400}
    found = cut(chain("ooorooo", {0: 10**9, 6: 10**9}, sizes))
    assert spell(found) == [("ours", (0, 1)), ("rest", (2, 3, 4)), ("ours", (5, 6))]


def test_one_tensor_crosses_in_place_of_its_slices() -> None:
    # 0 -> 1 to 4, slices of it -> 5(rest)
    slices = {index: [0] for index in range(1, 5)}
    sizes = dict.fromkeys(range(5), 100) | {0: 400}
    many = task("ooooor", slices | {5: [1, 2, 3, 4]}, {0: 10**9}, sizes)
    assert spell(cut(many)) == [("ours", (0,)), ("rest", (1, 2, 3, 4, 5))]
    # With only one slice it is the slice that crosses.
    one = task("oor", {1: [0], 2: [1]}, {0: 10**9}, sizes)
    assert spell(cut(one)) == [("ours", (0, 1)), ("rest", (2,))]


def test_what_crosses_anyway_is_sliced_where_the_slice_is_read() -> None:
    given_ = task("oorr", {1: [0], 2: [1], 3: [0, 2]}, {0: 10**9}, {0: 400, 1: 100})
    assert spell(cut(given_)) == [("ours", (0,)), ("rest", (1, 2, 3))]


def test_all_that_is_ours_is_one_segment_even_without_work() -> None:
    assert spell(cut(chain("ooo", {}))) == [("ours", (0, 1, 2))]


def test_nothing_that_pays_is_nothing_of_ours() -> None:
    assert spell(cut(chain("oro", {}))) == [("rest", (0, 1, 2))]
