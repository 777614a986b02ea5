"""Calibration data: what is read as what, and what is refused with which words."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nmcompile.errors import InputError
from nmcompile.images import Normalisation
from nmcompile.quantization.calibration import Calibration, read_calibration

ONE = [("x", (2, 3, 8, 8), "float32")]
TWO = [("x", (1, 3), "float32"), ("i", (1, 2), "int64")]


def images(count: int, size: int = 8) -> Any:
    return np.random.default_rng(0).standard_normal((count, 3, size, size)).astype(np.float32)


def read(data: Any, specs: Any = ONE, limit: int = 100) -> Calibration:
    return read_calibration(data, specs, limit)


def picture(path: Path, colour: int = 128, size: tuple[int, int] = (20, 30)) -> None:
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.fromarray(np.full((*size, 3), colour, np.uint8)).save(path)


# What is read


@pytest.mark.parametrize("form", ["samples", "runs", "float64"])
def test_an_array_is_samples_or_whole_runs(form: str) -> None:
    x = images(6)
    given = {"samples": x, "runs": x.reshape(3, 2, 3, 8, 8), "float64": x.astype(np.float64)}
    found = read({"x": given[form]})
    assert len(found) == 6
    assert found.arrays["x"].dtype == np.float32
    np.testing.assert_array_equal(found.arrays["x"], x)


def test_an_iterable_yields_single_samples_batches_mappings_or_sequences() -> None:
    x = images(7)
    items = [x[0], x[1:3], {"x": x[3:5]}, [x[5]], torch.from_numpy(x[6])]
    np.testing.assert_array_equal(read(items).arrays["x"], x)


def test_a_tensor_of_all_samples_is_one_array() -> None:
    x = images(5)
    np.testing.assert_array_equal(read(torch.from_numpy(x)).arrays["x"], x)


def test_an_endless_iterable_is_read_up_to_the_limit() -> None:
    def endless() -> Iterator[Any]:
        while True:
            yield images(2)

    assert len(read(endless(), limit=5)) == 5


def test_runs_are_filled_up_with_the_last_sample() -> None:
    x = images(5)
    runs = list(read({"x": x}).batches())
    assert [count for _, count in runs] == [2, 2, 1]
    np.testing.assert_array_equal(runs[2][0]["x"], x[[4, 4]])


def test_inputs_without_a_common_batch_are_whole_samples() -> None:
    specs = [("x", (2, 3), "float32"), ("y", (4,), "float32")]
    data = {"x": np.ones((5, 2, 3), np.float32), "y": np.ones((5, 4), np.float32)}
    runs = list(read(data, specs).batches())
    assert len(runs) == 5
    assert runs[0][0]["x"].shape == (2, 3) and runs[0][0]["y"].shape == (4,)


def test_an_archive_has_an_array_per_input_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    arrays: dict[str, Any] = {"x": np.ones((4, 3), np.float32), "i": np.zeros((4, 2), np.int64)}
    np.savez(path, **arrays, labels=np.arange(4))
    found = read(path, TWO)
    assert set(found.arrays) == {"x", "i"}
    assert found.labels is not None and list(found.labels) == [0, 1, 2, 3]


def test_the_archive_of_a_benchmark_is_read_as_it_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=images(4), y=np.arange(4))
    found = read(tmp_path / "d.npz", [("image", (2, 3, 8, 8), "float32")])
    assert found.labels is not None and list(found.labels) == [0, 1, 2, 3]
    np.testing.assert_array_equal(found.arrays["image"], images(4))


def test_a_folder_of_arrays_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    x = images(4)
    np.save(tmp_path / "b.npy", x[1:])
    np.save(tmp_path / "a.npy", x[0])
    (tmp_path / ".hidden").write_text("")
    np.testing.assert_array_equal(read(tmp_path).arrays["x"], x)


def test_arrays_in_one_folder_per_class_are_labelled(tmp_path: Path) -> None:
    for name, count in (("cat", 2), ("ant", 1)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "1.npy", images(count))
    found = read(tmp_path)
    assert found.labels is not None and list(found.labels) == [0, 1, 1]


def test_images_are_labelled_by_their_folder_and_normalised(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "1.png", 255)
    picture(tmp_path / "ant" / "1.jpg", 0)
    found = read_calibration(tmp_path, ONE, 10, Normalisation((0.5,), (0.25,)))
    assert found.labels is not None and list(found.labels) == [0, 1]
    assert found.arrays["x"].shape == (2, 3, 8, 8)
    np.testing.assert_allclose(found.arrays["x"][0], -2)
    np.testing.assert_allclose(found.arrays["x"][1], 2)


def test_grey_images_are_pixels_of_0_to_1(tmp_path: Path) -> None:
    picture(tmp_path / "1.png", 255)
    found = read(tmp_path, [("x", (1, 1, 8, 8), "float32")])
    np.testing.assert_allclose(found.arrays["x"], 1)
    assert found.labels is None


def test_the_limit_is_spread_evenly_over_arrays_and_labels() -> None:
    x = images(10)
    found = read({"x": x, "labels": np.arange(10)}, limit=4)
    assert found.labels is not None and list(found.labels) == [0, 3, 6, 9]
    np.testing.assert_array_equal(found.arrays["x"], x[[0, 3, 6, 9]])


def test_every_fourth_sample_is_held_out_where_there_are_enough() -> None:
    shown, measured = read({"x": images(9), "labels": np.arange(9)}).split()
    assert measured.labels is not None and list(measured.labels) == [3, 7]
    assert shown.labels is not None and list(shown.labels) == [0, 1, 2, 4, 5, 6, 8]
    few = read({"x": images(7)})
    assert few.split() == (few, few)


# What is refused


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "the calibration data is empty"),
        (np.zeros((0, 3, 8, 8), np.float32), "at least one sample, found an array of none"),
        (7, "is a int: expected a folder"),
        (["photo.png"], "item 0 is a str: expected an array"),
        ({"x": images(2), "z": images(2)}, "expected arrays for the inputs x, found x, z"),
        ({"y": images(2)}, "expected arrays for the inputs x, found y"),
        ([images(2, 9)], r"item 0, input x: expected samples of the shape \(3, 8, 8\).*9, 9\)"),
        ([images(2), np.full((3, 8, 8), np.nan, np.float32)], "item 1, input x: .* found nan"),
        ([np.full((3, 8, 8), 1e300)], "expected finite numbers, found inf in sample 0"),
        ([np.zeros((3, 8, 8), np.uint8)], "expected float32, found uint8"),
        ({"x": images(2), "labels": np.zeros(3, int)}, "one whole number for each of 2 samples"),
        ({"x": images(2), "labels": np.zeros(2)}, "found float64"),
    ],
)
def test_data_that_does_not_fit_is_named(data: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([np.zeros((1, 3), np.float32)], "is one array, and the model has the inputs x, i"),
        ([(np.zeros((1, 3), np.float32),)], "a sequence of 2, for x, i"),
        (
            {"x": np.zeros((2, 3), np.float32), "i": np.zeros((3, 2), int)},
            "as many samples for each input, found 2 for x, 3 for i",
        ),
        ({"x": np.zeros((2, 3), np.float32), "i": np.zeros((2, 2))}, "expected int64, found"),
    ],
)
def test_data_for_several_inputs_has_to_fit_all(data: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(data, TWO)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((), "is empty: expected .jpg"),
        (("a/",), "is empty: expected .jpg"),
        (("a.txt",), r"a\.txt: expected .jpg, .* found a\.txt; move it away"),
        (("a.npy", "b.png"), "found both; move one kind away"),
        (("a.png", "c/b.png"), "one subfolder of files per class, found both: a.png and c"),
        (("a.png",), "a.png is no image that Pillow can read"),
        (("a.npy",), "a.npy is no .npy file of numbers"),
    ],
)
def test_a_folder_of_something_else_is_refused(
    files: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    pytest.importorskip("PIL")
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        else:
            path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=said):
        read(tmp_path)


@pytest.mark.parametrize("name", ["missing", "d.npz", "d.txt"])
def test_a_file_that_is_no_archive_is_refused(name: str, tmp_path: Path) -> None:
    if name != "missing":
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(InputError, match=rf"cannot read .*{name}.*expected a folder"):
        read(tmp_path / name)


def test_a_folder_is_for_models_of_one_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a model of one input .* found x, i"):
        read(tmp_path, TWO)


def test_images_are_for_models_of_images(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"expected a model of RGB images .* found .*\(2, 5\)"):
        read(tmp_path, [("x", (2, 5), "float32")])


@pytest.mark.parametrize(
    ("mean", "deviation", "said"),
    [((0.1, 0.2), (1.0,), "has 2 numbers"), ((0.0,), (0.0,), "expected numbers above 0")],
)
def test_a_normalisation_has_to_fit_the_channels(
    mean: tuple[float, ...], deviation: tuple[float, ...], said: str, tmp_path: Path
) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(InputError, match=said):
        read_calibration(tmp_path, ONE, 10, Normalisation(mean, deviation))


def test_a_limit_of_no_samples_is_refused() -> None:
    with pytest.raises(InputError, match="number of calibration samples is 0"):
        read({"x": images(2)}, limit=0)
