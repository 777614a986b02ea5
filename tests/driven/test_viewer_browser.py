"""The page of a model in a real browser: rows fold, are found and chosen, and weights are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from playwright.sync_api import expect

from benchmarks.browser import find_chromium, open_browser, open_page
from nmcompile.runtime import Call
from nmcompile.sparsity import OneByN, parse_pattern, project
from nmcompile.viewer import render_view
from nmcompile.viewer.maps import make_pictures
from nmcompile.viewer.page import Subject
from tests.plain.test_viewer import entry, layer, sorting
from tests.support.manifests import manifest
from tests.support.report_runs import HOSTILE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium: run `make browser` as root, or set NMC_CHROMIUM"
)

PHONE, DESK = 360, 1280
MODULE = 3  # blocks
BLOCKS = 2 * MODULE
NM, BLOCK = "layer1.0.conv1", "layer1.0.conv2"


def weights() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    random = np.random.default_rng(0)
    return {
        NM: project(random.standard_normal((32, 32, 3, 3)), parse_pattern("2:4")),
        BLOCK: project(random.standard_normal((32, 32, 3, 3)), OneByN(16), 0.5),
    }


def network(folder: Path, blocks: int = BLOCKS) -> Path:
    """A residual network, two layers a block; maps of two layers."""
    calls, layers, before = list[Call](), [], "x"
    for place in range(blocks):
        first = 2 * place
        name = f"layer{place // MODULE + 1}.{place % MODULE}"
        calls += [Call(f"c__avx512_{first}", f"{name}.conv1"), Call("c__avx512", f"{name}.conv2")]
        trunk: int | str = first - 1 if place else before
        end = ("y",) if place == blocks - 1 else ()
        layers += [
            layer(f"{name}.conv1", entry(first, [trunk]), density=0.5),
            layer(
                *(f"{name}.conv2", entry(first + 1, [first, trunk], *end)),
                sparse=bool(place % 2),
                reason=f"<b>{place}</b> is not worth it",
            ),
        ]
    made = replace(manifest(calls=tuple(calls)), layers=tuple(layers))
    pictures, _ = make_pictures(weights(), {}, [])
    path = folder / f"network{blocks}.html"
    path.write_text(render_view(Subject("network", made, {}), None, pictures), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("viewer")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, folder: Path) -> Iterator[Page]:
    page, problems = open_page(browser, network(folder))
    yield page
    assert problems == []
    page.context.close()


def test_names_from_files_stay_text_and_nothing_is_requested(
    browser: Browser, folder: Path
) -> None:
    made, contents = sorting()
    pictures, _ = make_pictures({HOSTILE: np.eye(8)}, {}, [HOSTILE])
    path = folder / "hostile.html"
    path.write_text(render_view(Subject(HOSTILE, made, contents), None, pictures), encoding="utf-8")
    page, problems = open_page(browser, path)
    expect(page.locator("img:not([src^='data:']), iframe, object, b")).to_have_count(0)
    expect(page.locator("script")).to_have_count(1)
    page.get_by_role("button", name=HOSTILE).click()
    expect(page.locator("#facts h3:visible")).to_have_text(HOSTILE)
    page.wait_for_timeout(100)  # late requests
    assert problems == []
    page.context.close()


def test_a_chosen_row_shows_its_facts_and_its_neighbours(page: Page) -> None:
    expect(page.locator("#facts article:visible")).to_have_count(0)
    page.get_by_role("button", name="layer1.0.conv2").click()
    facts = page.locator("#facts article:visible")
    expect(facts).to_contain_text("<b>0</b> is not worth it")
    expect(page.locator(".node.near th")).to_have_text(
        ["x", "layer1.0.conv1", "layer1.1.conv1", "layer1.1.conv2"]
    )
    facts.get_by_role("link", name="layer1.1.conv2").click()
    expect(facts.locator("h3")).to_have_text("layer1.1.conv2")
    expect(page.locator('.node.chosen [aria-pressed="true"]')).to_have_text("layer1.1.conv2")


def test_arrow_keys_lead_through_rows_and_headings(page: Page) -> None:
    page.locator("#fold").focus()
    page.locator('.graph [tabindex="0"]').focus()
    for key, name in [
        ("ArrowDown", "layer1"), ("ArrowDown", "layer1.0.conv1"), ("ArrowUp", "layer1"),
        ("End", "y"), ("Home", "x"),
    ]:  # fmt: skip
        page.keyboard.press(key)
        expect(page.locator(":focus")).to_have_text(name)
    expect(page.locator('.graph [tabindex="0"]')).to_have_count(1)


def test_headings_fold_by_keys(page: Page) -> None:
    rows, heading = (
        page.locator(".node:visible"),
        page.get_by_role("button", name="layer1", exact=True),
    )
    whole = rows.count()
    heading.focus()
    page.keyboard.press("Enter")
    expect(heading).to_have_attribute("aria-expanded", "false")
    expect(rows).to_have_count(whole - 2 * MODULE)
    page.keyboard.press("Enter")
    expect(rows).to_have_count(whole)


def test_a_link_opens_what_is_folded_or_filtered_away(page: Page) -> None:
    page.locator("#fold").click()
    page.locator("#find").fill("no such row")
    expect(page.locator(".node:visible")).to_have_count(0)
    expect(page.locator("#found")).to_have_text(f"0 of {2 * BLOCKS + 2} rows")
    page.locator("#reasons").get_by_role("link", name="layer1.2.conv2").click()
    expect(page.locator(".node.chosen:visible th")).to_have_text("layer1.2.conv2")
    expect(page.locator("#find")).to_have_value("")


def test_rows_are_found_by_words_and_kind(page: Page) -> None:
    page.locator("#find").fill("CONV2 layer1")
    expect(page.locator(".node:visible")).to_have_count(MODULE)
    page.locator("#kind").select_option("dense")
    expect(page.locator(".node:visible th")).to_have_text(["layer1.0.conv2", "layer1.2.conv2"])
    page.locator("#find").fill("")
    page.locator("#kind").select_option("")
    expect(page.locator(".node:visible")).to_have_count(2 * BLOCKS + 2)


def test_hundreds_of_rows_begin_folded(browser: Browser, folder: Path) -> None:
    page, problems = open_page(browser, network(folder, 150))
    expect(page.locator(".node:visible")).to_have_count(2)
    expect(page.locator(".heading:visible")).to_have_count(150 // MODULE)
    page.locator("#fold").click()
    expect(page.locator(".node:visible")).to_have_count(302)
    assert problems == []
    page.context.close()


# What is drawn of a line: whether a line meets each edge of a row where the next one begins.
JOINED = """() => {
  const ends = (row, edge) => {
    const path = row.querySelector('.lanes .line')?.getAttribute('d') ?? '';
    const pattern = edge ? /M([\\d.]+),0/g : /(?:M([\\d.]+),(?:0|13))V26/g;
    return [...new Set([...path.matchAll(pattern)].map(found => Number(found[1])))].sort().join();
  };
  const rows = [...document.querySelectorAll('.node')];
  return rows.slice(1).map((row, place) => [ends(rows[place], false), ends(row, true)]);
}"""


def test_lines_go_on_from_row_to_row(page: Page) -> None:
    pairs = page.evaluate(JOINED)
    assert len(pairs) == 2 * BLOCKS + 1
    for left, entered in pairs:
        assert left == entered != ""


# The colour in the middle of a cell of the window, for the first rows and columns.
CELLS = """([name, rows, columns]) => {
  const figure = [...document.querySelectorAll('.map')].find(
    it => it.querySelector('figcaption').textContent === name);
  const canvas = figure.querySelector('.window canvas'), scale = canvas.width / canvas.clientWidth;
  const { width } = canvas;
  const { data } = canvas.getContext('2d').getImageData(0, 0, width, canvas.height);
  return [...Array(rows).keys()].map(y => [...Array(columns).keys()].map(x => {
    const at = 4 * ((9 * y + 5) * scale * width + (9 * x + 5) * scale);
    const [r, , b] = data.slice(at, at + 3);
    return b - r > 60;
  }));
}"""


def settle(page: Page) -> None:
    """Wait for the map that is shown to be drawn."""
    expect(page.locator(".map:not([hidden]) .place").first).not_to_have_text("")


def drawn(
    page: Page, name: str, rows: int, columns: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    settle(page)
    return np.array(page.evaluate(CELLS, [name, rows, columns]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_window_draws_each_weight(
    scheme: Literal["light", "dark"], browser: Browser, folder: Path
) -> None:
    page, problems = open_page(browser, network(folder), scheme=scheme)
    oihw = weights()[NM]
    rows = drawn(page, NM, 16, 64)
    np.testing.assert_array_equal(rows, (oihw.transpose(0, 2, 3, 1).reshape(32, -1) != 0)[:16, :64])
    assert (rows.reshape(16, 16, 4).sum(axis=2) == 2).all()  # 2:4, seen
    page.locator(".picker select").select_option(label=BLOCK)
    rows = drawn(page, BLOCK, 32, 90)
    assert (rows[:16] == rows[0]).all() and (rows.reshape(32, 10, 9) == rows[:, ::9, None]).all()
    np.testing.assert_array_equal(rows, (weights()[BLOCK].reshape(32, -1) != 0)[:, :90])
    assert problems == []
    page.context.close()


def test_the_window_moves_by_keys_and_tells_where_a_weight_is(page: Page) -> None:
    settle(page)
    window, place = page.locator(".window:visible"), page.locator(".place:visible")
    window.focus()
    expect(place).to_contain_text("columns 0 to ")
    page.keyboard.press("ArrowRight")
    expect(place).to_contain_text("columns 16 to ")
    np.testing.assert_array_equal(
        np.array(page.evaluate(CELLS, [NM, 4, 9])),
        (weights()[NM].transpose(0, 2, 3, 1).reshape(32, -1) != 0)[:4, 16:25],
    )
    window.hover(position={"x": 9 * 2 + 4, "y": 9 * 3 + 4})
    kept = "kept" if weights()[NM][3, 18, 0, 0] else "zero"
    expect(page.locator("#tip")).to_have_text(
        f"output channel 3, input channel 18, kernel (0, 0): {kept}"
    )


def test_facts_lead_to_the_map_of_the_layer(page: Page) -> None:
    page.get_by_role("button", name=BLOCK).click()
    page.locator("#facts").get_by_role("link", name="Which weights are zero").click()
    expect(page.locator(".map:visible figcaption")).to_have_text(BLOCK)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESK, PHONE])
def test_the_page_fits_the_screen(
    width: int, scheme: Literal["light", "dark"], browser: Browser, folder: Path
) -> None:
    page, problems = open_page(browser, network(folder), width, scheme=scheme)
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    marks = page.evaluate(
        """() => [...document.querySelectorAll('.node g.mark')].filter(mark => {
          const box = mark.getBoundingClientRect(), style = getComputedStyle(mark);
          const ground = getComputedStyle(mark.closest('td')).backgroundColor;
          return !(box.width > 4 && box.height > 4 && style.fill !== ground);
        }).length"""
    )
    assert marks == 0
    assert problems == []
    page.context.close()
