"""What the wheel holds, and what importing it drags in."""

import importlib
import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nmcompile.explain import COMPILE, EXTRAS

ROOT = Path(__file__).parents[2]
COMPILER_ONLY = {"torch", "tvm", "onnx", "nmcompile.graph", "nmcompile.passes"}


def packages_on_disk() -> set[str]:
    found = set()
    for top, prefix in (("nmcompile", ""), ("passes", "nmcompile."), ("runtime", "nmcompile.")):
        for init in (ROOT / top).rglob("__init__.py"):  # rglob does not follow the links
            found.add(prefix + ".".join(init.parent.relative_to(ROOT).parts))
    return found


def test_every_package_is_listed() -> None:
    # setuptools leaves an unlisted package out of the wheel without a word.
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(config["tool"]["setuptools"]["packages"]) == packages_on_disk()


@pytest.mark.parametrize("name", ["passes", "runtime"])
def test_top_level_name_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    with pytest.raises(ImportError, match=f"import nmcompile.{name}"):
        importlib.import_module(name)


def test_runtime_imports_no_compiler() -> None:
    code = "import sys, nmcompile.runtime; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not COMPILER_ONLY & set(modules)


def test_what_users_are_told_to_install_is_what_the_extras_bring() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    modules: dict[str, set[str]] = {}
    for module, packages in importlib.metadata.packages_distributions().items():
        for package in packages:
            modules.setdefault(canonicalize_name(package), set()).add(module)
    known = set().union(*EXTRAS.values())
    for extra, told in EXTRAS.items():
        lines = config["project"]["optional-dependencies"][extra]
        wanted = {canonicalize_name(Requirement(line).name) for line in lines}
        assert (extra == COMPILE) != ("nmcompile[compile]" in lines)
        brought = [modules[name] for name in wanted - {"nmcompile"}]
        assert set(told) <= set().union(*brought), extra
        assert all(known & names for names in brought), extra
