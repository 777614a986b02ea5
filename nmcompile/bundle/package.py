"""nmcompile's runtime alone, as `nmc bundle` wrote it: `from nmcompile import runtime`.

In a bundle this file is `nmcompile/__init__.py`. It reads on any Python 3 and refuses what the
compiled parts beside it cannot run on, before one of them fails without saying why.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import json
import os
import platform
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
_INFO = json.loads((HERE / "bundle.json").read_text(encoding="utf-8"))
__version__ = _INFO["nmcompile"]


def _check() -> None:
    found = f"{platform.python_implementation()} {platform.python_version()}"
    if not set(_INFO["suffixes"]).intersection(importlib.machinery.EXTENSION_SUFFIXES):
        raise ImportError(
            f"the bundle {HERE} is compiled for CPython {' and '.join(_INFO['pythons'])} on "
            f"{_INFO['machine']} Linux, this is {found} on {platform.machine()} "
            f"{platform.system()}: run it with python{_INFO['pythons'][0]}, or write it again by "
            "`nmc bundle --python` with this version"
        )
    libc = os.confstr("CS_GNU_LIBC_VERSION") or ""  # "glibc 2.36"
    version = [int(number) for number in libc.rpartition(" ")[2].split(".")[:2]]
    if version < [int(number) for number in _INFO["glibc"].split(".")]:
        raise ImportError(
            f"the bundle {HERE} needs glibc {_INFO['glibc']} or later, this system has {libc}: run "
            "it on a newer system, or compile the model on this one"
        )
    for name in _INFO["packages"]:
        if importlib.util.find_spec(name) is None:
            raise ImportError(
                f"the bundle {HERE} needs {name}, which this Python does not have: pip install "
                + name
            )


_check()


def __getattr__(name: str) -> Any:
    if name == "runtime":
        return importlib.import_module("nmcompile.runtime")
    raise AttributeError(
        f"module nmcompile has no attribute {name}: a bundle runs models, it does not compile them"
    )
