"""Bundles: what they run and compute where nothing is installed, and what they hold."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nmcompile
from nmcompile import runtime
from nmcompile.errors import DeviceError, TargetError
from nmcompile.runtime import TensorSpec, write_artifact
from nmcompile.runtime.native import CUDART
from tests.conftest import missing_tool
from tests.support.bare_python import python_with_numpy
from tests.support.fake_driver import fake_driver, need_no_driver
from tests.support.manifests import FEATURES, SHAPE, manifest
from tests.support.runtime_models import identity_library
from tests.support.tiny_models import example

OTHER_PYTHON = "3.12" if sys.version_info[:2] != (3, 12) else "3.13"


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return python_with_numpy(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def cpu_bundle(sparse_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> nmcompile.Bundle:
    return nmcompile.write_bundle(sparse_artifact, tmp_path_factory.mktemp("bundles") / "cpu")


def gpu_artifact(folder: Path, dtype: str = "float32") -> Path:
    """For a GPU; its library is none: a test that reaches it fails otherwise."""
    path = folder / "gpu.nmc"
    x, y = (TensorSpec(name, SHAPE, dtype) for name in "xy")
    described = manifest((x,), (y,), kind="sm_80", cpu_features=())
    write_artifact(path, described, b"no library", {"w": np.ones(SHAPE, np.float32)})
    return path


def write_gpu_bundle(artifact: Path, target: Path) -> nmcompile.Bundle:
    try:
        return nmcompile.write_bundle(artifact, target)
    except DeviceError as error:
        if CUDART not in str(error):
            raise
        missing_tool(CUDART, "pip install nvidia-cuda-runtime")


@pytest.fixture(scope="module")
def gpu_bundle(tmp_path_factory: pytest.TempPathFactory) -> nmcompile.Bundle:
    folder = tmp_path_factory.mktemp("gpu")
    return write_gpu_bundle(gpu_artifact(folder), folder / "bundle")


def python(
    executable: Path, *arguments: str | Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run it isolated: no variables, no user's packages, no folder of the script's on the path."""
    return subprocess.run(
        [executable, "-I", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=environment,
    )


# What a bundle computes


@pytest.mark.isa("avx512f")
def test_a_bundle_computes_what_a_session_here_does(
    bare_python: Path, cpu_bundle: nmcompile.Bundle, sparse_artifact: Path, tmp_path: Path
) -> None:
    x = example().numpy()
    expected = runtime.load(sparse_artifact).run(x)
    np.savez(tmp_path / "x.npz", x=x)
    np.save(tmp_path / "x.npy", x)
    for name in ("x.npz", "x.npy"):
        output = tmp_path / f"{name}.out"
        done = python(bare_python, cpu_bundle.path / "run.py", tmp_path / name, "-o", output)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(r"y  1x10  float32  -?\d.* to -?\d.*\n", done.stdout)
        with np.load(output) as found:
            assert found.files == ["y"]
            np.testing.assert_array_equal(found["y"], expected["y"])


IMPORT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from nmcompile import runtime
with runtime.load(sys.argv[1] + "/sparse.nmc", threads=1) as session:
    import numpy as np
    session.run({"x": np.zeros(session.inputs[0].shape, "float32")})
files = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
print(json.dumps([files, open("/proc/self/maps").read()]))
"""


@pytest.mark.isa("avx512f")
def test_a_bundle_imports_itself_and_numpy_only(
    bare_python: Path, cpu_bundle: nmcompile.Bundle
) -> None:
    done = python(bare_python, "-c", IMPORT, cpu_bundle.path)
    assert done.returncode == 0, done.stderr
    files, maps = json.loads(done.stdout)
    standard = (str(Path(os.__file__).parent), str(bare_python.parents[1]))
    others = [file for file in files if file and not file.startswith(standard)]
    assert others and all(Path(file).is_relative_to(cpu_bundle.path) for file in others)
    for name in ("libtvm_runtime.so", "libtvm_ffi.so"):
        assert f"{cpu_bundle.path}/tvm_ffi/lib/{name}\n" in maps
    assert "site-packages/tvm" not in maps


@pytest.mark.isa("avx512f")
def test_a_bundle_uses_its_own_files_where_tvm_is_installed(cpu_bundle: nmcompile.Bundle) -> None:
    done = python(Path(sys.executable), "-c", IMPORT, cpu_bundle.path)
    assert done.returncode == 0, done.stderr
    files, maps = json.loads(done.stdout)
    loaded = {line.split()[-1] for line in maps.splitlines() if "tvm" in line}
    assert len(loaded) == 4 and all(Path(p).is_relative_to(cpu_bundle.path) for p in loaded), loaded
    ours = [file for file in files if "nmcompile/" in file or "tvm_ffi/" in file]
    assert ours and all(Path(file).is_relative_to(cpu_bundle.path) for file in ours)


@pytest.mark.isa("avx512f")
def test_random_input_is_timed(bare_python: Path, cpu_bundle: nmcompile.Bundle) -> None:
    done = python(bare_python, cpu_bundle.path / "run.py", "--random", "--repeat", "3")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("y  1x10  float32")
    assert re.fullmatch(r"median of 3 runs: \d+\.\d+ ms", second)


@pytest.mark.isa("avx512f")
def test_one_of_several_models_is_chosen(
    bare_python: Path, sparse_artifact: Path, tmp_path: Path
) -> None:
    # An output called "file", which numpy.savez takes for its own argument; integers.
    x, file = (TensorSpec(name, (2, 3), "int32") for name in ("x", "file"))
    other = tmp_path / "other.nmc"
    library = identity_library(tmp_path, (2, 3), "int32")
    write_artifact(other, manifest((x,), (file,)), library, {})
    bundle = nmcompile.write_bundle([sparse_artifact, other], tmp_path / "b")
    assert bundle.artifacts == ("sparse.nmc", "other.nmc")
    run = bundle.path / "run.py"
    done = python(bare_python, run, "--random")
    assert done.returncode == 2
    assert "expected --artifact FILE.nmc; in this folder: sparse.nmc, other.nmc" in done.stderr
    out = tmp_path / "out.npz"
    done = python(bare_python, run, "--random", "--artifact", "other.nmc", "-o", out)
    assert done.returncode == 0, done.stderr
    with np.load(out) as found:
        assert found["file"].shape == (2, 3) and set(found["file"].ravel()) <= {0, 1}


@pytest.mark.isa("avx512f")
def test_the_runtime_alone_runs_models_from_elsewhere(
    bare_python: Path, sparse_artifact: Path, tmp_path: Path
) -> None:
    bundle = nmcompile.write_bundle([], tmp_path / "b")
    assert bundle.artifacts == () and bundle.nbytes == bundle.runtime_nbytes
    run = bundle.path / "run.py"
    done = python(bare_python, run, "--random", "--artifact", sparse_artifact)
    assert done.stdout.startswith("y  1x10  float32"), done.stderr
    assert "in this folder: none" in python(bare_python, run, "--random").stderr


# What it refuses to run


@pytest.mark.isa("avx512f")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: expected arrays written by numpy.savez .*No such file"),
        (b"no arrays", "cannot be read: expected arrays written by numpy.savez"),
        (np.zeros((2, 2), np.float32), r"expected shape \(1, 3, 16, 16\), found \(2, 2\)"),
        (np.array([object()], object), "cannot be read"),
    ],
)
def test_bad_input_is_one_line(
    content: Any, reason: str, bare_python: Path, cpu_bundle: nmcompile.Bundle, tmp_path: Path
) -> None:
    path = tmp_path / "x.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    output = tmp_path / "out.npz"
    done = python(bare_python, cpu_bundle.path / "run.py", path, "-o", output)
    assert done.returncode == 1
    assert re.fullmatch(f"error: .*{reason}.*\n", done.stderr)
    assert not output.exists()


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("suffixes", [".cpython-399-x86_64-linux-gnu.so"], r"is compiled for CPython 3\.\d+ on .*"),
        ("glibc", "999.1", r"needs glibc 999\.1 or later, this system has glibc 2\..*"),
        ("packages", ["numpy", "no_such_package"], "needs no_such_package, .*pip install .*"),
    ],
)
def test_what_a_bundle_needs_is_checked_first(
    key: str,
    value: Any,
    reason: str,
    bare_python: Path,
    cpu_bundle: nmcompile.Bundle,
    tmp_path: Path,
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(cpu_bundle.path, copy)
    info = json.loads((copy / "bundle.json").read_text())
    (copy / "bundle.json").write_text(json.dumps({**info, key: value}))
    done = python(bare_python, copy / "run.py", "--random")
    assert done.returncode == 1
    assert re.fullmatch(f"error: the bundle {copy} {reason}\n", done.stderr)
    done = python(bare_python, "-c", IMPORT, copy)
    assert re.search(f"ImportError: the bundle {copy} {reason}", done.stderr)


@pytest.mark.parametrize("name", ["run.py", "nmcompile/__init__.py"])
def test_older_pythons_read_far_enough_to_be_refused(
    name: str, cpu_bundle: nmcompile.Bundle
) -> None:
    ast.parse((cpu_bundle.path / name).read_text(), feature_version=(3, 7))


def test_a_bundle_does_not_compile(bare_python: Path, cpu_bundle: nmcompile.Bundle) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import nmcompile; nmcompile.compile"
    done = python(bare_python, "-c", code, cpu_bundle.path)
    assert "no attribute compile: a bundle runs models, it does not compile them" in done.stderr


def test_a_missing_library_is_named(
    bare_python: Path, cpu_bundle: nmcompile.Bundle, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(cpu_bundle.path, copy)
    (copy / "tvm_ffi/lib/libtvm_runtime.so").write_bytes(b"cut short")
    done = python(bare_python, copy / "run.py", "--random")
    assert done.returncode == 1
    assert re.match(r"error: TVM's runtime cannot be loaded \(.*libtvm_runtime", done.stderr)
    assert "copy the whole folder again" in done.stderr


# GPUs


def test_a_gpu_bundle_without_a_driver_says_so(
    bare_python: Path, gpu_bundle: nmcompile.Bundle
) -> None:
    need_no_driver()
    done = python(bare_python, gpu_bundle.path / "run.py", "--random")
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: .*/gpu\.nmc needs an NVIDIA GPU of compute capability 8\.0 \(A100, A30\), and its "
        r"driver: found no NVIDIA driver \(libcuda\.so\.1 cannot be loaded\).*\n",
        done.stderr,
    )


@pytest.mark.tool("ldd")
def test_only_the_driver_is_missing_to_a_gpu_bundle(gpu_bundle: nmcompile.Bundle) -> None:
    libraries = sorted(gpu_bundle.path.rglob("*.so*"))
    assert {"libtvm_runtime.so", "libtvm_runtime_cuda.so", CUDART} < {p.name for p in libraries}
    listed = subprocess.run(
        ["ldd", *libraries], capture_output=True, text=True, check=True, env={}
    ).stdout
    for line in listed.splitlines():
        name, found, path = line.strip().partition(" => ")
        if found and name != "libcuda.so.1":
            assert "not found" not in path, line
        if ("tvm" in name and found) or name == CUDART:
            assert path.startswith(f"{gpu_bundle.path}/tvm_ffi/lib/"), line


LOAD_CUDA = """
import sys
sys.path.insert(0, sys.argv[1])
from nmcompile.runtime import native
native.load_gpu_runtime()
import tvm_ffi
assert tvm_ffi.get_global_func("vm.builtin.cuda_graph.run_or_capture") is not None
print(open("/proc/self/maps").read())
"""


@pytest.mark.tool("gcc")
@pytest.mark.tool("nm")
def test_a_gpu_bundle_brings_the_cuda_runtime(
    bare_python: Path, gpu_bundle: nmcompile.Bundle, tmp_path: Path
) -> None:
    folder = str(fake_driver(tmp_path))
    done = python(bare_python, "-c", LOAD_CUDA, gpu_bundle.path, LD_LIBRARY_PATH=folder)
    assert done.returncode == 0, done.stderr
    for name in (CUDART, "libtvm_runtime_cuda.so"):
        assert f"{gpu_bundle.path}/tvm_ffi/lib/{name}\n" in done.stdout


def test_only_bundles_for_gpus_hold_cuda(
    cpu_bundle: nmcompile.Bundle, gpu_bundle: nmcompile.Bundle
) -> None:
    found = [path.relative_to(cpu_bundle.path) for path in cpu_bundle.path.rglob("*cuda*")]
    assert not [path for path in found if path.parts[0] != "nmcompile"]
    assert (cpu_bundle.gpu, gpu_bundle.gpu) == (False, True)
    assert "NVIDIA driver" not in (cpu_bundle.path / "README.txt").read_text()
    assert "NVIDIA driver, version 580" in (gpu_bundle.path / "README.txt").read_text()


def test_a_missing_cuda_runtime_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nmcompile.bundle.libraries.CUDART", "libcudart.so.999")
    with pytest.raises(DeviceError, match=r"libcudart\.so\.999.*pip install nvidia-cuda-runtime"):
        nmcompile.write_bundle([], tmp_path / "b", gpu=True)
    assert list(tmp_path.iterdir()) == []


# What it holds and says


def test_the_readme_says_what_is_needed(cpu_bundle: nmcompile.Bundle) -> None:
    lines = (cpu_bundle.path / "README.txt").read_text().splitlines()
    assert len(lines) == 10
    text = "\n".join(lines)
    assert f"CPython {sys.version_info.major}.{sys.version_info.minor} (no other" in text
    assert f"glibc {cpu_bundle.glibc} and libstdc++.so.6 of GLIBCXX_3.4." in text
    assert f"sparse.nmc: CPU with {FEATURES[0]}" in text
    assert "x float32 1x3x16x16 -> y float32 1x10" in text


@pytest.mark.tool("readelf")
def test_the_version_of_glibc_is_what_the_linker_asks_for(
    cpu_bundle: nmcompile.Bundle, sparse_artifact: Path, tmp_path: Path
) -> None:
    library = tmp_path / "lib.so"
    library.write_bytes(runtime.read_artifact(sparse_artifact).library)
    listed = subprocess.run(
        ["readelf", "--version-info", "--wide", *cpu_bundle.path.rglob("*.so"), library],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    versions = re.findall(r"Name: GLIBC_(\d+)\.(\d+)", listed)
    newest = max((int(major), int(minor)) for major, minor in versions)
    assert cpu_bundle.glibc == ".".join(map(str, newest))


def test_licences_go_along(cpu_bundle: nmcompile.Bundle) -> None:
    licences = cpu_bundle.path / "licenses"
    for package in ("nmcompile", "apache-tvm", "apache-tvm-ffi", "typing_extensions"):
        assert list((licences / package).rglob("*LICENSE")), package
    for package in ("apache-tvm", "apache-tvm-ffi"):
        assert list((licences / package).rglob("*NOTICE")), package


def test_a_bundle_is_small(cpu_bundle: nmcompile.Bundle, sparse_artifact: Path) -> None:
    size = sum(path.stat().st_size for path in cpu_bundle.path.rglob("*") if path.is_file())
    cached = sum(path.stat().st_size for path in cpu_bundle.path.rglob("*.pyc"))
    assert cpu_bundle.nbytes == size - cached
    assert cpu_bundle.runtime_nbytes == cpu_bundle.nbytes - sparse_artifact.stat().st_size
    assert cpu_bundle.runtime_nbytes < 12_000_000  # docs/tasks/deploy.md says 10 MB


def test_bfloat16_needs_a_package_more(tmp_path: Path) -> None:
    bundle = write_gpu_bundle(gpu_artifact(tmp_path, "bfloat16"), tmp_path / "b")
    assert "with numpy and ml_dtypes" in (bundle.path / "README.txt").read_text()
    assert json.loads((bundle.path / "bundle.json").read_text())["packages"][1:] == ["ml_dtypes"]


def test_another_python_may_run_it(tmp_path: Path) -> None:
    try:
        bundle = nmcompile.write_bundle([], tmp_path / "b", pythons=(OTHER_PYTHON,))
    except TargetError as error:
        missing_tool("a package index", str(error))
    tag = OTHER_PYTHON.replace(".", "")
    names = {path.name for path in (bundle.path / "tvm_ffi").glob("core.*")}
    assert len(names) == 2
    assert f"core.cpython-{tag}-x86_64-linux-gnu.so" in names
    assert set(bundle.pythons) == {OTHER_PYTHON, "{}.{}".format(*sys.version_info[:2])}
    assert f"CPython {' or '.join(bundle.pythons)} " in (bundle.path / "README.txt").read_text()


@pytest.mark.parametrize("version", ["3.10", "3", "2.7", "three", "3.12.1", "3.999"])
def test_other_pythons_are_refused(version: str, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=f"Python version '?{re.escape(version)}"):
        nmcompile.write_bundle([], tmp_path / "b", pythons=(version,))
    assert list(tmp_path.iterdir()) == []
