"""The wheel takes TVM's runtime along, which TVM ships with its compiler only (305 MB installed).

What a build of it needs beyond pyproject.toml depends on what is built, so this module is also the
build backend: setuptools' own, but for one requirement of wheels.
"""

import importlib.util
import shutil
import tomllib
from pathlib import Path
from typing import Any

from setuptools import Distribution, build_meta, setup
from setuptools.build_meta import (  # noqa: F401
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

LIBRARIES = ("libtvm_runtime.so", "libtvm_runtime_cuda.so")
LICENCES = ("LICENSE", "NOTICE", "licenses/*")
FOLDER = Path("nmcompile", "runtime", "lib")  # `library_folders` of runtime/native.py looks there
PLATFORM = "manylinux_2_27_x86_64.manylinux_2_28_x86_64"  # that of TVM's wheels


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """Those of setuptools, and the TVM that the compiler is for."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    tvm = [name for name in project["optional-dependencies"]["compile"] if "tvm" in name]
    return [*build_meta.get_requires_for_build_wheel(config_settings), *tvm]


class BuildWithRuntime(build_py):
    """Python files, and in wheels TVM's runtime with its licences."""

    def run(self) -> None:
        """See the class; an editable install has none of them, and needs TVM itself."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, FOLDER)
            for source, name in _parts():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target / name)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """The files above too."""
        outputs: list[str] = super().get_outputs(include_bytecode)
        if self.editable_mode:
            return outputs
        return [*outputs, *(str(Path(self.build_lib, FOLDER, name)) for _, name in _parts())]


class WithLibraries(Distribution):
    """A package that is not the same on every platform."""

    def has_ext_modules(self) -> bool:
        """See the class."""
        return True


class TaggedWheel(bdist_wheel):
    """A wheel for any Python 3 on the machines that TVM's libraries are for."""

    def get_tag(self) -> tuple[str, str, str]:
        """See the class."""
        return ("py3", "none", PLATFORM)


def _parts() -> list[tuple[Path, str]]:
    spec = importlib.util.find_spec("tvm")  # finds the package without running it
    if spec is None or spec.origin is None:
        raise SystemExit("a wheel of nmcompile takes TVM's runtime from apache-tvm: install that")
    tvm = Path(spec.origin).parent
    licences = [path for pattern in LICENCES for path in sorted(tvm.glob(pattern))]
    return [
        *((tvm / "lib" / name, name) for name in LIBRARIES),
        *((path, f"licenses/{path.name}") for path in licences),
    ]


if __name__ == "__main__":
    setup(
        distclass=WithLibraries,
        cmdclass={"build_py": BuildWithRuntime, "bdist_wheel": TaggedWheel},
    )
