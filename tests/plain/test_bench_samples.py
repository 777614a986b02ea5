"""Labelled images: what is read, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmcompile.bench.accuracy import judge
from nmcompile.bench.samples import check_labels, random_samples, read_samples
from nmcompile.errors import InputError, ModelError

SPECS = [("x", (2, 3, 8, 8), "float32")]


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def images(count: int, size: int = 8) -> Any:
    return np.random.default_rng(0).standard_normal((count, 3, size, size)).astype(np.float32)


def test_arrays_become_whole_batches(tmp_path: Path) -> None:
    x = images(5)
    path = write_npz(tmp_path / "d.npz", x=x, y=np.arange(5))
    samples = read_samples(path, SPECS, limit=100)
    assert [batch["x"].shape for batch in samples.batches] == [(2, 3, 8, 8)] * 3
    np.testing.assert_array_equal(np.concatenate([b["x"] for b in samples.batches])[:5], x)
    assert samples.count == 5 and samples.labels is not None
    few = read_samples(path, SPECS, limit=3)
    assert list(few.labels if few.labels is not None else []) == [0, 2, 4]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": 0}, "expected the arrays x .* found images"),
        ({"x": images(2), "y": np.zeros(3, int)}, "one whole number in y for each image"),
        ({"x": images(2), "y": np.zeros(2)}, "of float64"),
        ({"x": images(2, 9), "y": np.zeros(2, int)}, r"expected images of \(3, 8, 8\)"),
    ],
)
def test_arrays_that_do_not_fit_are_named(
    arrays: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = write_npz(tmp_path / "d.npz", **arrays)
    with pytest.raises(InputError, match=rf"d\.npz: .*{said}"):
        read_samples(path, SPECS, limit=10)


@pytest.mark.parametrize("content", [None, b"nothing"])
def test_what_is_no_data_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read .*d\.npz"):
        read_samples(tmp_path / "d.npz", SPECS, limit=10)


def test_labels_have_to_be_classes(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "d.npz", x=images(2), y=np.array([0, 12]))
    samples = read_samples(path, SPECS, limit=10)
    check_labels(path, samples, 13)
    with pytest.raises(InputError, match=r"expected labels from 0 to 9, .* found 0 to 12"):
        check_labels(path, samples, 10)


def test_a_folder_has_one_subfolder_per_class(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for name, colour in (("cat", 255), ("ant", 0)):
        (tmp_path / name).mkdir()
        pixels = np.full((20, 30, 3), colour, np.uint8)
        image.fromarray(pixels).save(tmp_path / name / "1.png")
    samples = read_samples(tmp_path, SPECS, limit=10)
    assert samples.labels is not None and list(samples.labels) == [0, 1]
    ant, cat = samples.batches[0]["x"]
    assert ant.max() < 0 < cat.min()


def test_folders_without_images_and_files_that_are_none(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    (tmp_path / "cat").mkdir()
    with pytest.raises(InputError, match="expected one subfolder per class"):
        read_samples(tmp_path, SPECS, limit=10)
    (tmp_path / "cat" / "1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1\.png is no image"):
        read_samples(tmp_path, SPECS, limit=10)


def test_random_samples_fill_at_least_one_batch() -> None:
    assert random_samples(SPECS, 2).count == 4
    assert random_samples([("x", (8, 3), "float32")], 8).count == 8


def test_outputs_are_compared_with_the_reference() -> None:
    expected = [np.array([[0.0, 1.0], [1.0, 0.0]])]
    found = [np.array([[0.0, 1.0], [0.4, 0.5]])]
    accuracy = judge("torch", expected, found, np.array([1, 1]))
    assert (accuracy.max_error, accuracy.same_top1, accuracy.top1) == (0.6, 0.5, 1.0)
    with pytest.raises(InputError, match="which torch returns for the same inputs"):
        judge("torch", expected, [np.zeros((2, 3))], None)
    with pytest.raises(ModelError, match="infinite or not a number"):
        judge("torch", expected, [np.full((2, 2), np.nan)], None)


def test_the_largest_of_a_quantised_output_is_known_to_a_step() -> None:
    expected = [np.array([[0.5, 0.4, 0.1], [0.5, 0.4, 0.1]])]
    found = [np.array([[0.4, 0.5, 0.1], [0.4, 0.1, 0.5]])]
    assert judge("onnxruntime", expected, found, None, step=0.1).same_top1 == 0.5
    assert judge("onnxruntime", expected, found, None).same_top1 == 0.0
