"""Packed 2:4 weights, decoded lane by lane as the PTX ISA lays them out, against dense products."""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmcompile.errors import PatternError
from nmcompile.sparsity import NM, OneByN, Pattern, Unstructured, check, project
from nmcompile.sparsity.tensor_core import (
    check_two_four,
    compress,
    decompress,
    first_broken_group,
    fragments,
    implies_two_four,
    metadata,
    pack_dense,
    pack_sparse,
)
from tests.support.examples import examples

Array = npt.NDArray[Any]
LANES = range(32)
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "int8": np.int8}


def random_matrix(rows: int, columns: int, dtype: str, pattern: Pattern, seed: int) -> Array:
    """Small integers, so that every product is exact."""
    rng = np.random.default_rng(seed)
    dense = rng.integers(-4, 5, (rows, columns)).astype(np.float32)
    return project(dense, pattern, 0.1).astype(DTYPES[dtype])


# ---- The instructions: from the registers of 32 lanes (g, t) = divmod(lane, 4) to matrices.


def sparse_a(registers: Array, words: Array, selector: int, dtype: Any) -> Array:
    """A of m16n8k32 (16-bit, selector 0 or 1) or m16n8k64 (8-bit): fragments and their metadata.

    PTX ISA 9.0, 9.7.14.6.2: elements of register q belong to row g + 8 (q % 2).
    """
    size = np.dtype(dtype).itemsize
    a = np.zeros((16, 64 // size))
    for lane in LANES:
        g, t = divmod(lane, 4)
        elements = registers[lane].view(dtype)
        per_register = 4 // size
        for i, value in enumerate(elements):
            q, h = divmod(i, per_register)
            row = g + 8 * (q % 2)
            # Two elements stem from four columns; two registers cover half of the columns.
            group = t * per_register // 2 + h // 2 + q // 2 * (8 // size)
            if size == 2:
                source = words[4 * g + 2 * selector + group // 4]
            else:
                source = words[4 * g + group // 4]
            nibble = int(source) >> (16 * (q % 2) + 4 * (group % 4)) & 15
            low, high = nibble & 3, nibble >> 2
            assert low < high, "ordered metadata"
            a[row, 4 * group + (high if h % 2 else low)] = float(value)
    return a


def dense_a(registers: Array) -> Array:
    """A of m16n8k16, float16 (9.7.14.5.8)."""
    a = np.zeros((16, 16))
    for lane in LANES:
        g, t = divmod(lane, 4)
        for i, value in enumerate(registers[lane].view(np.float16)):
            row = g if i < 2 or 4 <= i < 6 else g + 8
            a[row, 2 * t + i % 2 + (8 if i >= 4 else 0)] = float(value)
    return a


@examples(30)
@given(
    dtype=st.sampled_from(sorted(DTYPES)),
    pattern=st.sampled_from([NM(2, 4), NM(1, 4), NM(2, 8), NM(1, 8), NM(1, 16)]),
    warps=st.sampled_from([(64, 64), (128, 64), (64, 32), (32, 16), (64, 16)]),
    tiles=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    seed=st.integers(0, 1000),
)
def test_packed_tiles_multiply_as_the_dense_matrix(
    dtype: str, pattern: Pattern, warps: tuple[int, int], tiles: tuple[int, int], seed: int
) -> None:
    tile_rows, warp_rows = warps
    rows, columns = tiles[0] * tile_rows, tiles[1] * 64
    matrix = random_matrix(rows, columns, dtype, pattern, seed)
    packed = pack_sparse(matrix, tile_rows, warp_rows)
    size = matrix.dtype.itemsize
    rng = np.random.default_rng(seed)
    right = rng.integers(-3, 4, (columns, 8)).astype(np.float64)
    product = np.zeros((rows, 8))
    instructions = size  # of 64 columns: two of 32, or one of 64
    for tile in range(tiles[0]):
        for depth in range(tiles[1]):
            block = packed[tile, depth]
            kept = tile_rows * 32 * size // 4
            values = block[:kept].reshape(tile_rows // 16, instructions, 32, 4)
            words = block[kept:].reshape(tile_rows // warp_rows, 32, warp_rows // 16)
            for m16 in range(tile_rows // 16):
                warp, inner = divmod(m16, warp_rows // 16)
                top = tile * tile_rows + m16 * 16
                for step in range(instructions):
                    a = sparse_a(values[m16, step], words[warp, :, inner], step, matrix.dtype)
                    left = depth * 64 + step * a.shape[1]
                    product[top : top + 16] += a @ right[left : left + a.shape[1]]
    assert (product == matrix.astype(np.float64) @ right).all()


@given(seed=st.integers(0, 1000), selector=st.sampled_from([0, 1]))
def test_the_other_selector_reads_other_positions(seed: int, selector: int) -> None:
    matrix = random_matrix(16, 64, "float16", NM(2, 4), seed)
    compressed = compress(matrix)
    registers = fragments(compressed.values)[0, selector]
    words = metadata(compressed.positions)[0, 0]
    right, wrong = (sparse_a(registers, words, s, np.float16) for s in (selector, 1 - selector))
    assert (right == matrix[:, 32 * selector : 32 * selector + 32]).all()
    assert (wrong != right).any()


@given(seed=st.integers(0, 1000), blocks=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_dense_fragments_hold_the_matrix(seed: int, blocks: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((32 * blocks[0], 64 * blocks[1])).astype(np.float16)
    packed = pack_dense(matrix, 32).reshape(blocks[0], blocks[1], 2, 4, 32, 4)
    for tile, depth, m16, step in np.ndindex(packed.shape[:4]):
        top, left = tile * 32 + m16 * 16, depth * 64 + step * 16
        found = dense_a(packed[tile, depth, m16, step])
        assert (found == matrix[top : top + 16, left : left + 16]).all()


@given(
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(sorted(DTYPES)),
    pattern=st.sampled_from([NM(2, 4), NM(1, 8), Unstructured()]),
)
def test_compression_is_undone(seed: int, dtype: str, pattern: Pattern) -> None:
    matrix = random_matrix(5, 24, dtype, pattern, seed)
    matrix[0] = 0
    groups = matrix.reshape(5, -1, 4)
    groups[np.count_nonzero(groups, axis=2) > 2] = 0
    compressed = compress(matrix)
    assert (decompress(compressed) == matrix).all()
    pairs = compressed.positions.reshape(-1, 2)
    assert (pairs[:, 0] < pairs[:, 1]).all()


def test_sparse_weights_take_nine_sixteenths_of_dense_ones() -> None:
    matrix = random_matrix(64, 128, "float16", NM(2, 4), 0)
    assert pack_sparse(matrix, 64, 32).nbytes * 16 == matrix.nbytes * 9


# ---- Which weights hold 2:4


@examples(100)
@given(
    pattern=st.builds(
        lambda m, n, axis: NM(min(n, m), m, axis),
        st.sampled_from([2, 3, 4, 5, 6, 8, 12, 16, 32]),
        st.integers(1, 5),
        st.sampled_from(["ic", "flat"]),
    ),
    channels=st.integers(1, 33),
    kernel=st.sampled_from([(1, 1), (3, 3), (1, 2)]),
    seed=st.integers(0, 1000),
)
def test_patterns_said_to_imply_two_four_do(
    pattern: NM, channels: int, kernel: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = project(rng.standard_normal((3, channels, *kernel)), pattern)
    if implies_two_four(pattern, channels):
        assert first_broken_group(weight) is None


@pytest.mark.parametrize("spelling", [(1, 4), (2, 4), (1, 8), (2, 8), (1, 16), (2, 16)])
def test_patterns_that_tensor_cores_run(spelling: tuple[int, int]) -> None:
    assert implies_two_four(NM(*spelling), 64)


@pytest.mark.parametrize("pattern", [NM(4, 8), NM(3, 4), NM(2, 4, "flat"), OneByN(4), NM(2, 6)])
def test_patterns_that_tensor_cores_do_not_run(pattern: Pattern) -> None:
    assert not implies_two_four(pattern, 48)


@given(
    seed=st.integers(0, 1000), groups=st.integers(1, 6), kernel=st.sampled_from([(1, 1), (2, 3)])
)
def test_whole_groups_agree_with_the_pattern_check(
    seed: int, groups: int, kernel: tuple[int, int]
) -> None:
    rng = np.random.default_rng(seed)
    weight = project(rng.standard_normal((4, 4 * groups, *kernel)), NM(2, 4))
    if seed % 2:
        weight[rng.integers(4), :3, -1, -1] = 1
    found, expected = first_broken_group(weight), check(weight, NM(2, 4))
    assert (found is None) == expected.ok
    assert found == expected.first


def test_groups_end_with_the_input_channels() -> None:
    # Six channels: in HWI order the third group would be channels 2 to 5 of the next position.
    weight = np.zeros((1, 6, 1, 2))
    weight[0, [4, 5], 0, 0] = weight[0, [0, 1], 0, 1] = 1
    assert first_broken_group(weight) is None
    assert not check(weight, NM(2, 4)).ok


def test_the_error_names_the_group() -> None:
    weight = np.zeros((2, 8, 3, 3), np.float32)
    weight[1, 4:7, 2, 0] = 1
    with pytest.raises(
        PatternError, match=r"layer1\.0.*found 3 in output channel 1, input chan"
    ) as e:
        check_two_four(weight, "layer1.0")
    assert "channels 4 to 7, kernel position (2, 0)" in str(e.value)
    check_two_four(weight * 0)


def test_compression_names_the_group() -> None:
    matrix = np.zeros((3, 12), np.float16)
    matrix[2, 8:] = 1
    with pytest.raises(PatternError, match=r"row 2, columns 8 to 11: .* found 4"):
        compress(matrix)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compress(np.zeros((2, 6))), "columns a multiple of 4"),
        (lambda: fragments(np.zeros((15, 16), np.float16)), "multiples of 16"),
        (lambda: fragments(np.zeros((16, 8), np.float32)), "expected 8 or 16 bits"),
        (lambda: metadata(np.zeros((16, 30), np.uint8)), "64 dense ones"),
        (lambda: metadata(np.zeros((16, 32), np.uint8)), "must rise"),
        (lambda: pack_sparse(np.zeros((64, 32), np.float16), 64, 32), "multiples of 64"),
        (lambda: pack_sparse(np.zeros((64, 64), np.float16), 64, 24), "whole warps"),
        (lambda: pack_dense(np.zeros((48, 64), np.float16), 32), "multiples of the tile"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(call: Any, message: str) -> None:
    with pytest.raises(PatternError, match=message):
        call()
