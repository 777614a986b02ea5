"""Puts a page together: its template over the skeleton, its style and script behind common ones."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import Any, Final

from nmcompile.errors import InputError

ASSETS: Final = "assets"


def render_page(package: str, name: str, extra: str, **values: Any) -> str:
    """A page, as HTML.

    Args:
        package: of `asset`s `name`.html, which extends base.html, `name`.css and `name`.js.
        name: of these files.
        extra: the extra of this distribution that brings what pages need, for messages.
        values: what the template shows. Everything is escaped unless it says otherwise.

    Raises:
        InputError: jinja2 is not installed.
    """
    script = asset(__package__, "base.js") + asset(package, f"{name}.js")
    page: str = (
        _environment(package, extra)
        .get_template(f"{name}.html")
        .render(
            style=asset(__package__, "base.css") + asset(package, f"{name}.css"),
            script=script,
            # The browser runs this script and no other, whatever a name in the page holds.
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            **values,
        )
    )
    return page


def asset(package: str, name: str) -> str:
    """The text of a file in the folder `assets` of a package."""
    return (resources.files(package) / ASSETS / name).read_text(encoding="utf-8")


@cache
def _environment(package: str, extra: str) -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise InputError(
            f"the page needs jinja2, which is not installed: pip install 'nmcompile[{extra}]'"
        ) from error
    # Names come from models and files of others: everything is escaped unless it says otherwise.
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(room, ASSETS) for room in (package, __package__)]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
