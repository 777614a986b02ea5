"""2:4 weights as the sparse tensor cores of NVIDIA GPUs read them.

`mma.sp` multiplies a 16 x K matrix of which every group of four consecutive elements of a row holds
at most two non-zeros. It takes the two kept elements of each group and their positions in it
("metadata"), both spread over the 32 lanes of a warp. Layouts are those of the PTX ISA 9.0, section
9.7.14.6 (storage of sparse matrices, fragments of m16n8k32 for 16-bit and m16n8k64 for 8-bit
elements); lane = 4 * g + t, g in 0..7, t in 0..3:

- Kept elements. A lane holds four 32-bit registers; register q is word t + 4 * (q // 2) of row
  g + 8 * (q % 2), where a word is 32 bits of the row's kept elements. A dense m16n8k16 fragment of
  16-bit elements has the same form.
- Metadata. A group is a nibble, first position | second position << 2, the first strictly lower
  (`::ordered_metadata`), so 4, 8, 9, 12, 13 and 14 are the legal ones. For every 64 dense columns a
  lane holds one 32-bit register with the groups of columns 16 * t .. 16 * t + 15: row g in the
  lower, row g + 8 in the upper half. It serves two instructions of 16-bit elements, with selectors
  0 (lanes t = 0, 1) and 1 (t = 2, 3), or one of 8-bit elements.

`wgmma.mma_async.sp` (Hopper) with A in registers gives each of its four warps 16 rows in exactly
that form, so `warp_rows` = 16 packs for it. The 16-bit layouts agree with what others run on
hardware; the 8-bit metadata is read off the figures of the ISA and has not met hardware yet.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nmcompile.errors import PatternError
from nmcompile.sparsity.groups import Array, as_oihw, pad_axis
from nmcompile.sparsity.pattern import NM, Pattern

GROUP = 4  # consecutive weights
KEPT = 2  # most of them that are not zero
ROWS = 16  # output channels of one instruction
LANES = 32
COLUMNS = 64  # dense columns whose positions fill one metadata register of every lane
MMA_WORDS = 8  # 32-bit words of kept elements in a row of one instruction

_G, _T = np.divmod(np.arange(LANES), 4)
_LEGAL_NIBBLES = frozenset({4, 8, 9, 12, 13, 14})


@dataclass(frozen=True, eq=False)
class Compressed:
    """A 2:4 matrix of shape (rows, columns) as two kept elements per group of four.

    values: (rows, columns / 2), of the matrix's dtype.
    positions: (rows, columns / 2) uint8, 0 to 3 within the group, rising strictly in each pair,
        also where fewer than two elements are non-zero.
    """

    values: Array
    positions: NDArray[np.uint8]


def implies_two_four(pattern: Pattern, channels: int) -> bool:
    """Whether every weight of a pattern holds 2:4 along the input channels.

    On axis ic, and where groups do not run over kernel positions (`channels` a multiple of m and
    of 4): 1:m for every m >= 2 (1:4, 1:8, 1:16), since four neighbours touch at most two groups,
    and 2:m for m a multiple of 4 (2:4, 2:8, 2:16), whose groups consist of whole groups of four.
    Not 4:8, nor anything on axis flat. Other weights may hold it all the same: ask
    `first_broken_group`.
    """
    if not isinstance(pattern, NM) or pattern.axis != "ic":
        return False
    if channels % pattern.m or channels % GROUP:
        return False
    return (pattern.n == 1 and pattern.m >= 2) or (pattern.n == 2 and pattern.m % GROUP == 0)


def first_broken_group(weight: ArrayLike) -> tuple[int, int, int, int] | None:
    """OIHW index of the first of four neighbouring input channels with over two non-zeros.

    Groups start at input channel 0 of every output channel and kernel position, and the last one of
    each is short where the input channels are not a multiple of four; None where all hold 2:4.
    These are the groups of pattern 2:4 on axis ic where the channels are a multiple of four.

    Raises:
        PatternError: the weight is not OIHW, OIK or OI.
        WeightError: a dimension is zero.
    """
    nonzero = as_oihw(weight) != 0
    padded = pad_axis(nonzero, 1, GROUP)
    o, i, kh, kw = padded.shape
    counts = padded.reshape(o, i // GROUP, GROUP, kh, kw).sum(axis=2, dtype=np.uint8)
    broken = np.argwhere(counts.transpose(0, 2, 3, 1) > KEPT)
    if not len(broken):
        return None
    out, row, column, group = (int(index) for index in broken[0])
    return out, group * GROUP, row, column


def check_two_four(weight: ArrayLike, name: str = "weight") -> None:
    """Make sure that a weight holds 2:4 along its input channels.

    Raises:
        PatternError: a group of four has more than two non-zeros; the message names it.
        WeightError: a dimension is zero.
    """
    found = first_broken_group(weight)
    if found is None:
        return
    out, channel, row, column = found
    group = as_oihw(weight)[out, channel : channel + GROUP, row, column]
    raise PatternError(
        f"{name}: expected at most {KEPT} non-zeros in every {GROUP} input channels, found "
        f"{np.count_nonzero(group)} in output channel {out}, input channels {channel} to "
        f"{channel + len(group) - 1}, kernel position ({row}, {column}); run `nmc enforce` with "
        "2:4, or compile the layer dense"
    )


def compress(matrix: ArrayLike) -> Compressed:
    """Keep two elements of every four in a row: the non-zero ones, then the first zeros.

    Args:
        matrix: (rows, columns), columns a multiple of 4, of any dtype that compares with zero
            (float16, int8, ml_dtypes.bfloat16, ...).

    Raises:
        PatternError: another shape, or a group with more than two non-zeros.
    """
    array = np.asarray(matrix)
    if array.ndim != 2 or array.shape[1] % GROUP:
        raise PatternError(
            f"matrix of shape {array.shape}: expected (rows, columns) with columns a multiple of "
            f"{GROUP}; pad with zeros"
        )
    rows = array.shape[0]
    groups = array.reshape(rows, -1, GROUP)
    nonzero = groups != 0
    counts = np.count_nonzero(nonzero, axis=2)
    if (counts > KEPT).any():
        row, group = (int(index) for index in np.argwhere(counts > KEPT)[0])
        raise PatternError(
            f"row {row}, columns {group * GROUP} to {group * GROUP + GROUP - 1}: expected at most "
            f"{KEPT} non-zeros, found {counts[row, group]}; impose 2:4 first"
        )
    order = np.argsort(~nonzero, axis=2, kind="stable")[:, :, :KEPT]
    positions = np.sort(order, axis=2)
    values = np.take_along_axis(groups, positions, axis=2)
    return Compressed(values.reshape(rows, -1), positions.reshape(rows, -1).astype(np.uint8))


def decompress(compressed: Compressed) -> Array:
    """The matrix again; the inverse of `compress`."""
    rows, kept = compressed.values.shape
    groups = np.zeros((rows, kept // KEPT, GROUP), compressed.values.dtype)
    positions = compressed.positions.reshape(rows, -1, KEPT).astype(np.int64)
    np.put_along_axis(groups, positions, compressed.values.reshape(rows, -1, KEPT), axis=2)
    return groups.reshape(rows, -1)


def fragments(elements: ArrayLike) -> NDArray[np.uint32]:
    """The A registers of consecutive instructions, lane by lane.

    Args:
        elements: (rows, n) kept or, for the dense instruction, all elements; 8 or 16 bits each.
            Rows are a multiple of 16, a row's bytes of the 32 of one instruction.

    Returns:
        (rows / 16, row bytes / 32, 32 lanes, 4 registers).

    Raises:
        PatternError: another shape or element size.
    """
    array = np.ascontiguousarray(elements)
    row_bytes = array.shape[-1] * array.itemsize
    if array.ndim != 2 or array.shape[0] % ROWS or row_bytes % (4 * MMA_WORDS):
        raise PatternError(
            f"elements of shape {array.shape} and {array.itemsize} bytes: expected rows in "
            f"multiples of {ROWS} and of {4 * MMA_WORDS} bytes; pad with zeros"
        )
    if array.itemsize not in (1, 2):
        raise PatternError(
            f"elements of type {array.dtype}: expected 8 or 16 bits (int8, float16, bfloat16)"
        )
    words = array.view(np.uint32).reshape(-1, ROWS, row_bytes // 4 // MMA_WORDS, MMA_WORDS)
    registers = [words[:, _G + 8 * (q % 2), :, _T + 4 * (q // 2)] for q in range(4)]
    # Lanes come first behind two index arrays: (4, lanes, rows / 16, instructions).
    return np.ascontiguousarray(np.stack(registers).transpose(2, 3, 1, 0))


def metadata(positions: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """The metadata register of every lane.

    Args:
        positions: (rows, columns / 2) as in `Compressed`; rows a multiple of 16, columns of 64.

    Returns:
        (rows / 16, columns / 64, 32 lanes).

    Raises:
        PatternError: another shape, or pairs that do not rise.
    """
    rows, kept = positions.shape
    if rows % ROWS or kept % (COLUMNS // KEPT):
        raise PatternError(
            f"positions of shape {positions.shape}: expected rows in multiples of {ROWS} and "
            f"columns in multiples of {COLUMNS // KEPT} ({COLUMNS} dense ones); pad with zeros"
        )
    pairs = positions.reshape(rows, -1, KEPT).astype(np.uint32)
    nibbles = pairs[:, :, 0] | pairs[:, :, 1] << 2
    if not np.isin(nibbles, list(_LEGAL_NIBBLES)).all():
        raise PatternError(
            "positions of a pair must rise and be 0 to 3 (ordered metadata); use `compress`"
        )
    shifts = 4 * np.arange(4, dtype=np.uint32)
    halves = np.bitwise_or.reduce(nibbles.reshape(rows, -1, 4) << shifts, axis=2)
    split = halves.reshape(-1, 2, 8, kept // (COLUMNS // KEPT), 4)  # m16, half, g, columns, t
    registers = split[:, 0] | split[:, 1] << 16
    ordered = registers.transpose(0, 2, 1, 3).reshape(rows // ROWS, -1, LANES)
    return np.ascontiguousarray(ordered)


def pack_sparse(matrix: ArrayLike, tile_rows: int, warp_rows: int) -> NDArray[np.uint32]:
    """Weights of a sparse implicit-GEMM kernel: one contiguous block per tile of the matrix.

    A tile is `tile_rows` x 64 dense columns. Its block holds the kept elements, (m16, instruction,
    lane, 4), so that a lane loads 16 bytes per instruction; then the metadata, (warp, lane, m16 of
    the warp), so that a lane loads what belongs to its warp's rows at once.

    Args:
        matrix: (rows, columns) 2:4, of 8 or 16 bits; rows a multiple of `tile_rows`, columns of 64.
        tile_rows: rows of a thread block's tile, a multiple of `warp_rows`.
        warp_rows: rows of one warp, a multiple of 16; 16 for `wgmma.mma_async.sp`.

    Returns:
        (rows / tile_rows, columns / 64, words of a block).

    Raises:
        PatternError: a group with more than two non-zeros, or sizes that do not divide.
    """
    array = np.asarray(matrix)
    _check_tiles(array, tile_rows, warp_rows)
    compressed = compress(array)
    tiles, depth = array.shape[0] // tile_rows, array.shape[1] // COLUMNS
    values = _by_tile(fragments(compressed.values), tiles, depth)
    words = metadata(compressed.positions).reshape(tiles, -1, warp_rows // ROWS, depth, LANES)
    return np.concatenate(
        [values, words.transpose(0, 3, 1, 4, 2).reshape(tiles, depth, -1)], axis=2
    )


def pack_dense(matrix: ArrayLike, tile_rows: int) -> NDArray[np.uint32]:
    """As `pack_sparse` for the dense instruction m16n8k16: all elements, no metadata."""
    array = np.asarray(matrix)
    _check_tiles(array, tile_rows, ROWS)
    return _by_tile(fragments(array), array.shape[0] // tile_rows, array.shape[1] // COLUMNS)


def _by_tile(registers: NDArray[np.uint32], tiles: int, depth: int) -> NDArray[np.uint32]:
    rows, instructions = registers.shape[0] // tiles, registers.shape[1] // depth
    split = registers.reshape(tiles, rows, depth, instructions * LANES * 4)
    return np.ascontiguousarray(split.transpose(0, 2, 1, 3)).reshape(tiles, depth, -1)


def _check_tiles(array: Array, tile_rows: int, warp_rows: int) -> None:
    fits = array.ndim == 2 and array.shape[0] % tile_rows == 0 and array.shape[1] % COLUMNS == 0
    if not fits or tile_rows % warp_rows or warp_rows % ROWS:
        raise PatternError(
            f"matrix of shape {array.shape}: expected rows in multiples of the tile ({tile_rows}), "
            f"which consists of whole warps ({warp_rows}) of whole instructions ({ROWS}), and "
            f"columns in multiples of {COLUMNS}; pad with zeros"
        )
