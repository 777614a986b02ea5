"""A headless Chromium: for tests of the report, and for its picture in the documentation.

python -m benchmarks.browser report.html -o report.png [--width 1280] [--height 1600] [--dark]
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = (
    *("chromium-headless-shell", "chromium", "chromium-browser"),
    *("google-chrome", "google-chrome-stable"),
)


def find_chromium() -> str | None:
    """The Chromium of this machine: that of NMC_CHROMIUM, else the first one in the path."""
    named = os.environ.get("NMC_CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser of its own, without the user's profile.

    Raises:
        FileNotFoundError: there is no Chromium.
    """
    from playwright.sync_api import sync_playwright

    found = find_chromium()
    if found is None:
        raise FileNotFoundError(
            f"no Chromium: expected one of {', '.join(NAMES)}; run `make browser` as root, or name "
            "one in NMC_CHROMIUM"
        )
    with sync_playwright() as playwright:
        # Root has no sandbox; the pages are ours.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def open_page(
    browser: Browser,
    path: Path,
    width: int = 1280,
    height: int = 900,
    scheme: Literal["light", "dark"] = "light",
) -> tuple[Page, list[str]]:
    """Open a file; the list grows with every error, warning, dialog and request beside the file."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=2
    )
    page, problems, address = context.new_page(), list[str](), path.absolute().as_uri()

    def on_request(url: str) -> None:
        if url != address:
            problems.append(f"request: {url}")

    page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: on_request(request.url))
    page.goto(address)
    return page, problems


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make a picture of the top of a page.")
    parser.add_argument("page", type=Path)
    parser.add_argument("--output", "-o", type=Path, required=True)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=1600)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--section", default="", help="begin at this one, such as density")
    options = parser.parse_args(words)
    with open_browser() as browser:
        scheme: Literal["light", "dark"] = "dark" if options.dark else "light"
        page, problems = open_page(browser, options.page, options.width, options.height, scheme)
        if options.section:
            page.locator(f"#{options.section}").evaluate("it => it.scrollIntoView()")
        page.screenshot(path=options.output)
    if problems:
        parser.exit(1, "\n".join(problems) + "\n")


if __name__ == "__main__":
    main()
