"""What `import nmcompile` shows in a shell, and what it costs."""

import subprocess
import sys

import pytest

import nmcompile

HEAVY = {"torch", "onnx", "onnx_ir", "onnxruntime", "tvm", "tvm_ffi", "numpy", "rich", "typer"}


def imported_by(code: str) -> set[str]:
    """The packages in a process that has run `code`."""
    code = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_completion_shows_the_api_and_nothing_else() -> None:
    assert set(dir(nmcompile)) == {*nmcompile.__all__, "__version__"}
    assert {"compile", "inspect", "quantize", "runtime", "train", "devices"} <= set(dir(nmcompile))


def test_every_name_that_is_shown_is_there() -> None:
    for name in dir(nmcompile):
        assert getattr(nmcompile, name) is not None


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        nmcompile.nothing  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert not imported_by("import nmcompile; dir(nmcompile)") & HEAVY


@pytest.mark.parametrize(
    ("name", "needed"), [("train", "torch"), ("devices", "nmcompile"), ("runtime", "numpy")]
)
def test_packages_are_there_without_an_import_of_their_own(name: str, needed: str) -> None:
    assert needed in imported_by(f"import nmcompile; nmcompile.{name}.__all__")
