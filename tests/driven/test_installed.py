"""Wheel and sdist: what is in them, and what runs where nothing else is installed."""

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from benchmarks.zoo import resnet18
from nmcompile.runtime import cpu, write_artifact
from tests.support.installed import environment
from tests.support.manifests import SHAPE, manifest
from tests.support.runtime_models import affine_library
from tests.support.seed_modules import export_onnx
from tests.support.tiny_models import SHAPE as IMAGE
from tests.support.tiny_models import example, tiny_net

ROOT = Path(__file__).parents[2]
TREE = ("nmcompile", "passes", "runtime", "pyproject.toml", "setup.py", "README.md", "LICENSE")
PLACES = {"nmcompile": "nmcompile", "passes": "nmcompile/passes", "runtime": "nmcompile/runtime"}
FOREIGN = "nmcompile/runtime/lib/"  # TVM's runtime and its licences


def build(folder: Path, kind: str, output: Path) -> Path:
    """Build a folder with what is installed here; the wheel or sdist."""
    words = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}"]
    done = subprocess.run(
        [*words, f"--outdir={output}", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = output.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy without what earlier builds have left, which setuptools would take along."""
    folder = tmp_path_factory.mktemp("build") / "tree"
    folder.mkdir()
    for name in TREE:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def unpacked(tree: Path) -> Path:
    """The sdist, unpacked."""
    shutil.unpack_archive(build(tree, "sdist", tree.parent / "sdist"), tree.parent / "unpacked")
    (folder,) = (tree.parent / "unpacked").iterdir()
    return folder


@pytest.fixture(scope="module")
def wheel(unpacked: Path) -> Path:
    return build(unpacked, "wheel", unpacked.parent / "wheel")


@pytest.fixture(scope="module")
def runtime_alone(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("runtime"), wheel)


@pytest.fixture(scope="module")
def with_compiler(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("compile"), wheel, ["compile"])


def python(interpreter: Path, *words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a Python that sees no program and no module but its own."""
    return subprocess.run(
        [interpreter, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={"PATH": "", "HOME": str(cwd), "OMP_NUM_THREADS": "1"},
    )


def nmc(interpreter: Path, *words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return python(interpreter, "-m", "nmcompile", *words, cwd=cwd)


def test_the_wheel_has_every_file_of_the_packages_and_tvms_runtime(wheel: Path) -> None:
    expected = {}
    for top, place in PLACES.items():
        for path in (ROOT / top).rglob("*"):  # rglob does not follow the links
            if path.is_file() and "__pycache__" not in path.parts:
                expected[f"{place}/{path.relative_to(ROOT / top)}"] = path.read_bytes()
    found = content(wheel)
    ours = {name for name in found if not name.startswith(FOREIGN) and ".dist-info/" not in name}
    assert ours == set(expected)
    assert all(found[name] == expected[name] for name in ours)
    foreign = {name.removeprefix(FOREIGN) for name in found if name.startswith(FOREIGN)}
    assert foreign >= {"libtvm_runtime.so", "libtvm_runtime_cuda.so", "licenses/LICENSE"}


def test_a_wheel_of_the_sdist_is_that_of_the_tree(wheel: Path, tree: Path) -> None:
    assert content(build(tree, "wheel", tree.parent / "other")) == content(wheel)


def test_the_runtime_alone_runs_a_model(runtime_alone: Path, tmp_path: Path) -> None:
    described = manifest(cpu_features=("sse4_2",))
    library = affine_library(tmp_path, cpu="x86-64-v2")
    w, b, x = (np.random.default_rng(i).random(SHAPE, np.float32) for i in range(3))
    write_artifact(tmp_path / "m.nmc", described, library, {"w": w, "b": b})
    np.save(tmp_path / "x.npy", x)
    code = """
import nmcompile, numpy
session = nmcompile.runtime.load("m.nmc")
numpy.save("y.npy", session.run(numpy.load("x.npy"))["y"])
print(*(line.split()[-1] for line in open("/proc/self/maps") if "libtvm" in line))
"""
    done = python(runtime_alone, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), x * w + b + b, rtol=1e-6)
    assert "nmcompile/runtime/lib/libtvm_runtime.so" in done.stdout
    done = nmc(runtime_alone, "run", "m.nmc", "--input", "x.npy", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "y.npy"), np.load(tmp_path / "y.npy"))


def test_the_runtime_alone_writes_a_bundle(runtime_alone: Path, tmp_path: Path) -> None:
    write_artifact(tmp_path / "m.nmc", manifest(), b"no library", {"w": np.ones(4, np.float32)})
    done = nmc(runtime_alone, "bundle", "m.nmc", "-o", "bundle", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "bundle" / "licenses" / "nmcompile").rglob("NOTICE"))


COMMANDS = {
    "compile m.onnx -o m.nmc": "compile",
    "inspect m.onnx": "compile",
    "fold m.onnx -o n.onnx": "compile",
    "enforce m.onnx --pattern 2:4 -o n.onnx": "compile",
    "quantize m.onnx --data x.npz -o n.onnx": "quantize",
    "bench m.onnx": "bench",
    "bench report m.onnx -o m.html": "bench",
    "device serve --key a": "devices",
}


def test_a_command_of_an_extra_says_which(runtime_alone: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    np.savez(tmp_path / "x.npz", x=np.zeros(1))
    code = """
import contextlib, io, sys
from nmcompile.cli import app
for words in sys.argv[1:]:
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            app(words.split(), prog_name="nmc")
        except SystemExit as end:
            code = end.code
    print(code, said.getvalue(), end="")
"""
    done = python(runtime_alone, "-c", code, *COMMANDS, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == len(COMMANDS), done.stdout + done.stderr
    for line, extra in zip(lines, COMMANDS.values(), strict=True):
        assert line.startswith("1 error: ") and line.endswith(f"pip install 'nmcompile[{extra}]'")


def test_the_python_interface_says_what_to_install(runtime_alone: Path, tmp_path: Path) -> None:
    code = """
import nmcompile
for name in ("compile", "inspect", "fold", "enforce"):
    try:
        getattr(nmcompile, name)("m.onnx", *["2:4"][: name == "enforce"])
    except nmcompile.errors.DeviceError as error:
        assert "pip install 'nmcompile[compile]'" in str(error), error
        print(name)
"""
    done = python(runtime_alone, "-c", code, cwd=tmp_path)
    assert done.stdout.split() == ["compile", "inspect", "fold", "enforce"], done.stderr


def check_compiled(
    model: nn.Module, x: Tensor, with_compiler: Path, runtime_alone: Path, folder: Path
) -> None:
    """Compile where there is neither torch nor a compiler, and run it where TVM is not either."""
    onnx.save(export_onnx(model, x), folder / "m.onnx")
    missing = "import importlib.util as u, shutil; print(u.find_spec('torch'), shutil.which('g++'))"
    assert python(with_compiler, "-c", missing, cwd=folder).stdout.split() == ["None", "None"]
    done = nmc(with_compiler, "compile", "m.onnx", "-o", "m.nmc", cwd=folder)
    assert done.returncode == 0, done.stderr
    np.save(folder / "x.npy", x.numpy())
    done = nmc(runtime_alone, "run", "m.nmc", "--input", "x.npy", "-o", "out", cwd=folder)
    if "avx512f" not in cpu.host()[1]:
        assert "m.nmc needs the CPU features avx512f" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    expected = model(x).detach().numpy()
    tolerance = 1e-4 * np.ptp(expected)
    np.testing.assert_allclose(np.load(folder / "out" / "y.npy"), expected, atol=tolerance)


def test_the_compiler_needs_neither_torch_nor_any_program(
    with_compiler: Path, runtime_alone: Path, tmp_path: Path
) -> None:
    check_compiled(tiny_net("2:4"), example(IMAGE), with_compiler, runtime_alone, tmp_path)


def test_a_torch_model_without_torch_says_what_to_install(
    with_compiler: Path, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text("import torch")
    done = nmc(with_compiler, "inspect", "net:net", "--shape", "x=1,3,8,8", cwd=tmp_path)
    assert done.stderr.endswith(
        "needs torch, which is not installed here: pip install 'nmcompile[torch]'\n"
    )


@pytest.mark.long
def test_pip_installs_the_runtime_and_the_compiler_from_the_index(
    wheel: Path, tmp_path: Path
) -> None:
    """ResNet-18, with what the index has today; takes its packages from there, 220 MB."""
    pythons = {}
    for extra in ("", "[compile]"):
        venv.create(folder := tmp_path / f"venv{extra}", with_pip=False, symlinks=True)
        pythons[extra] = folder / "bin" / "python"
        pip = [sys.executable, "-m", "pip", "--python", str(pythons[extra]), "install", "--quiet"]
        subprocess.run([*pip, "--no-compile", f"{wheel}{extra}"], check=True)
    torch.manual_seed(0)
    x = example((1, 3, 224, 224))
    check_compiled(resnet18().eval(), x, pythons["[compile]"], pythons[""], tmp_path)
