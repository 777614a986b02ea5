"""The documentation site: it builds without a warning, has all of the code, needs no network."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from playwright.sync_api import expect

from benchmarks.browser import find_chromium, open_browser, open_page
from docs.generate.pages import ROOT
from docs.generate.reference import MODULES
from nmcompile import errors
from nmcompile.cli import app

LOADING = {"script": "src", "img": "src", "iframe": "src", "link": "href"}
"""Attributes that a browser fetches by itself."""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("documentation")
    pages = folder / "pages"
    environment = {**os.environ, "NMCOMPILE_PAGES": str(pages), "NO_MKDOCS_2_WARNING": "1"}
    build = ("mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder / "site"))
    for module in (("docs.generate", "--output", str(pages)), build):
        done = subprocess.run(
            [sys.executable, "-m", *module],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


class Loads(HTMLParser):
    """What a page has a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if LOADING.get(tag) == name]


def test_the_site_says_all_of_the_code_and_fetches_nothing(site: Path) -> None:
    for path in site.rglob("*.html"):
        loads = Loads()
        loads.feed(path.read_text(encoding="utf-8"))
        assert loads.addresses, path
        for address in loads.addresses:
            assert not re.match(r"\w+:|//", address), f"{path.name} loads {address}"
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:|//)", path.read_text(encoding="utf-8")), path

    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for name in command_names(typer.main.get_command(app), "nmc"):
        assert f">{name}<" in commands, f"{name} is not in the command reference"
    for module in ("nmcompile", *(f"nmcompile.{name}" for name in MODULES if name != "errors")):
        page = (site / "reference" / f"{module.rpartition('.')[2]}.html").read_text("utf-8")
        for name in importlib.import_module(module).__all__:
            assert f"{module}.{name}" in page, f"{module}.{name} is not in the reference"
    page = (site / "reference" / "errors.html").read_text(encoding="utf-8")
    assert all(f"{errors.__name__}.{name}" in page for name in vars(errors) if name[0].isupper())

    if find_chromium() is not None:
        assert_searchable_from_a_folder(site)


def command_names(command: object, name: str) -> list[str]:
    """`nmc bench report` and the like, of all commands below one."""
    below = getattr(command, "commands", {})
    return [
        full
        for word, child in below.items()
        for full in (f"{name} {word}", *command_names(child, f"{name} {word}"))
    ]


def assert_searchable_from_a_folder(site: Path) -> None:
    """What is opened from a file system finds pages, shows pictures, and asks no server."""
    with open_browser() as browser:
        page, problems = open_page(browser, site / "index.html")
        picture = page.locator("img[src*=way-of-the-data]")
        assert picture.evaluate("it => it.complete && it.naturalWidth") > 0
        found = page.locator(".md-search-result__meta")
        # The index is read once the field is entered; what is typed before that is not heard.
        page.locator("input[name=query]").click()
        expect(found).to_have_text("Type to start searching", timeout=30_000)
        page.locator("input[name=query]").press_sequentially("Winograd")
        expect(found).to_contain_text("matching documents", timeout=30_000)
        assert [it for it in problems if not it.startswith("request: file:")] == []
