"""Lists of unequal length: shared out evenly over chunks, and still computed right."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmcompile.kernels.avx512.panel.config import PanelConfig
from nmcompile.kernels.avx512.panel.packing import deal, pack_conv
from nmcompile.kernels.catalog import CATALOG
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import Activation, Conv2d, Epilogue
from nmcompile.sparsity import Detection, OneByN, Unstructured
from tests.support.kernel_runner import Array, reference, relative_error, run_kernel


@given(chunks=st.integers(1, 6), size=st.integers(1, 8), data=st.data())
def test_dealing_shares_work_evenly(chunks: int, size: int, data: st.DataObject) -> None:
    count = chunks * size
    work = np.asarray(data.draw(st.lists(st.integers(0, 99), min_size=count, max_size=count)))
    dealt = deal(work, chunks)
    assert sorted(dealt) == list(range(count))
    loads = work[dealt].reshape(chunks, size).sum(axis=1)
    assert loads.max() - loads.min() <= work.max()
    assert loads.max() <= max(int(part.sum()) for part in np.sort(work).reshape(chunks, size))


def rising_weight(conv: Conv2d, n: int, random: np.random.Generator) -> Array:
    """Blocks of `n` output channels that keep more of the input channels from first to last."""
    blocks = -(-conv.out_channels // n)
    ranks = np.argsort(random.random((blocks, conv.group_in)), axis=1)
    kept = ranks < np.linspace(0, 0.9 * conv.group_in, blocks).round()[:, None]
    kept = np.repeat(kept, n, axis=0)[: conv.out_channels, :, None, None]
    shape = (conv.out_channels, conv.group_in, *conv.kernel)
    return np.where(kept, random.standard_normal(shape, dtype=np.float32), np.float32(0))


def config_of(conv: Conv2d, n: int, block_channels: int, chunks: int) -> PanelConfig:
    """Shared lists of `n` channels, or private ones for 1."""
    if n == 1:
        return PanelConfig("private", 3, 2, 1, 1, block_channels, chunks)
    return PanelConfig("shared", 3, 4, n, conv.taps, block_channels, chunks)


@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize(
    ("conv", "block_channels", "chunks"),
    [
        (Conv2d(1, 24, 7, 7, 256, (1, 1)), 24, 4),
        (Conv2d(2, 40, 9, 6, 130, (3, 3), padding=(1, 1, 1, 1)), 16, 3),
        (Conv2d(1, 32, 9, 6, 144, (3, 3), groups=2), 7, 2),
    ],
)
def test_unequal_lists_agree_with_float64(
    conv: Conv2d, block_channels: int, chunks: int, n: int
) -> None:
    random = np.random.default_rng(0)
    weight = rising_weight(conv, n, random)
    config = config_of(conv, n, block_channels, chunks)
    pattern = OneByN(n) if n > 1 else Unstructured()
    out_shape = (conv.batch, conv.out_channels, conv.out_height, conv.out_width)
    x = random.standard_normal((conv.batch, conv.in_channels, conv.in_height, conv.in_width))
    problem = Problem(
        conv,
        Epilogue(True, True, Activation("silu")),
        weight,
        random.standard_normal(conv.out_channels, dtype=np.float32),
        Detection(pattern, (pattern,), float(np.count_nonzero(weight)) / weight.size),
    )
    assert pack_conv(weight, conv, config).order is not None
    name = "conv2d_f32_one_by_n" if n > 1 else "conv2d_f32_nm"
    kernel = next(row for row in CATALOG if row.name.startswith(name))
    residual = random.standard_normal(out_shape, dtype=np.float32)
    found = run_kernel(kernel, problem, x.astype(np.float32), residual, config)
    expected = reference(problem, x.astype(np.float32), residual)
    assert relative_error(found, expected) < 1e-5


def test_chunks_of_a_layer_with_rising_density_get_equal_work() -> None:
    conv = Conv2d(1, 64, 7, 7, 256, (1, 1))
    weight = rising_weight(conv, 16, np.random.default_rng(0))
    packed = pack_conv(weight, conv, config_of(conv, 16, 64, 2))
    assert packed.starts is not None
    begin, half, end = packed.starts[[0, 8, 16]]
    assert abs((half - begin) - (end - half)) <= 4


def test_equal_lists_stay_where_they_are() -> None:
    conv = Conv2d(1, 64, 7, 7, 256, (1, 1))
    weight = np.ones((256, 64, 1, 1), np.float32)
    assert pack_conv(weight, conv, config_of(conv, 16, 64, 2)).order is None
