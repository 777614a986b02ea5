"""What importing and using the runtime drags in, seen from a fresh process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmcompile.runtime import write_artifact
from tests.support.manifests import SHAPE, manifest
from tests.support.runtime_models import affine_library

ROOT = Path(__file__).parents[2]
COMPILER_ONLY = {"torch", "onnx", "onnx_ir", "onnxscript", "tvm"}
BUILD_SMALL_MODEL = """
import sys
from pathlib import Path
from tests.support.runtime_models import affine_library
assert len(affine_library(Path(sys.argv[2]))) > 1000
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("affine")
    ones = np.ones(SHAPE, np.float32)
    library = affine_library(folder)
    write_artifact(folder / "affine.nmc", manifest(), library, {"w": ones, "b": ones})
    return folder / "affine.nmc"


def fresh(code: str, path: Path) -> Any:
    """Run `code` in a new Python and return the JSON it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(path.parent)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


RUN = """
import json, sys
import numpy as np
import nmcompile.runtime
assert "tvm_ffi" not in sys.modules  # the first load brings TVM's runtime in
session = nmcompile.runtime.load(sys.argv[1])
assert session.run(np.zeros((8, 16), "float32"))["y"].tolist() == [[2.0] * 16] * 8
"""


def test_loading_and_running_imports_numpy_and_tvms_runtime_only(path: Path) -> None:
    code = RUN + "print(json.dumps([list(sys.modules), open('/proc/self/maps').read()]))"
    modules, maps = fresh(code, path)
    packages = {name.partition(".")[0] for name in modules}
    assert not COMPILER_ONLY & packages
    ours = {name for name in modules if name.startswith("nmcompile.")}
    assert {name for name in ours if not name.startswith("nmcompile.runtime")} == {
        "nmcompile.errors",
        "nmcompile.version",
    }
    assert packages - sys.stdlib_module_names - {"__main__", "nmcompile"} >= {"numpy", "tvm_ffi"}
    assert "libtvm_runtime.so" in maps
    assert "libtvm_compiler.so" not in maps


def test_the_runtime_and_tvms_runtime_import_in_half_a_second_of_a_core(path: Path) -> None:
    # Of this process alone, whatever else is on the machine.
    code = """
import json, sys, time
start = time.process_time()
import nmcompile.runtime
nmcompile.runtime.native.native_runtime()
print(json.dumps(time.process_time() - start))
assert "torch" not in sys.modules
"""
    assert min(fresh(code, path) for _ in range(5)) < 0.5


def test_a_model_can_be_compiled_after_one_was_loaded(path: Path) -> None:
    assert fresh(RUN + BUILD_SMALL_MODEL + "print(json.dumps('tvm' in sys.modules))", path)


def test_a_model_can_be_loaded_after_one_was_compiled(path: Path) -> None:
    code = BUILD_SMALL_MODEL + RUN.replace('assert "tvm_ffi"', '"tvm_ffi"')
    assert fresh(code + "print(json.dumps('tvm' in sys.modules))", path)


def test_torch_can_be_imported_and_used_after_a_model_was_loaded(path: Path) -> None:
    code = (
        RUN
        + """
assert "torch" not in sys.modules
import torch
print(json.dumps(session.run(torch.ones(8, 16))["y"].tolist()))
"""
    )
    assert fresh(code, path) == [[3.0] * 16] * 8
