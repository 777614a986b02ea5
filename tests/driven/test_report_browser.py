"""The report in a real browser: it loads alone, tables sort, plots are drawn and can be walked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from playwright.sync_api import expect

from benchmarks.browser import find_chromium, open_browser, open_page
from nmcompile.bench.report import render_report
from tests.support.report_runs import HOSTILE, make_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium: run `make browser` as root, or set NMC_CHROMIUM"
)

PHONE, DESK = 360, 1280
SECTIONS = ["density", "threads", "batch", "accuracy", "sites", "layers"]
MARKS = '.mark-symbol [role="graphics-symbol"]'


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two machines, models, threads and batches; every section is there."""
    models = ("resnet50", HOSTILE)
    runs = [make_run("desk", models), make_run("cloud", models, speed=1.7)]
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_report(runs), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def shared(browser: Browser, report: Path) -> Iterator[Page]:
    """An open page for tests that leave it as they find it."""
    page, problems = open_page(browser, report)
    yield page
    assert problems == []
    page.context.close()


def test_it_loads_without_errors_or_requests(browser: Browser, report: Path) -> None:
    page, problems = open_page(browser, report)
    assert page.title().startswith("desk, cloud")
    for section in SECTIONS:
        expect(page.locator(f"#{section}")).to_be_visible()
    page.wait_for_timeout(100)  # late requests
    assert problems == []
    page.context.close()


def test_names_from_files_stay_text(shared: Page) -> None:
    expect(shared.locator("img, iframe, object, b")).to_have_count(0)
    expect(shared.locator("script")).to_have_count(1)
    expect(shared.get_by_role("rowheader", name=HOSTILE).first).to_have_text(HOSTILE)
    said = shared.locator("figure .plot").evaluate_all("all => all.map(it => it.ariaLabel)")
    assert any(HOSTILE in text for text in said)


# Opens every table and figure, hidden ones too, and says what cannot be seen otherwise.
REVEAL = """() => {
  for (const it of document.querySelectorAll('details')) it.open = true;
  for (const it of document.querySelectorAll('figure')) it.hidden = false;
}"""

ORDERS = """table => [...table.querySelectorAll('thead th')].map((head, index) => {
  const keys = () => [...table.tBodies[0].rows].map(row => row.cells[index].dataset.key ?? null);
  const orders = [0, 1].map(() => { head.firstElementChild.click(); return keys(); });
  return {number: head.classList.contains('num'), orders, sort: head.ariaSort};
})"""


def is_sorted(keys: list[str | None], number: bool, descending: bool) -> bool:
    """By value; what has none stands last both ways."""
    known = [key for key in keys if key is not None]
    if None in keys[: len(known)]:
        return False
    if number:
        values = [float(key) for key in known]
        return values == sorted(values, reverse=descending)
    # Words are in the browser's order, where digits count as numbers: each stands in one block.
    return len(blocks(keys)) == len(set(known))


def blocks(keys: list[str | None]) -> list[str]:
    """The keys without their repetitions."""
    known = [key for key in keys if key is not None]
    return [key for place, key in enumerate(known) if place == 0 or known[place - 1] != key]


def test_every_table_sorts_by_every_column(browser: Browser, report: Path) -> None:
    page, problems = open_page(browser, report)
    page.evaluate(REVEAL)
    tables = page.locator("table")
    assert tables.count() > 4 + len(SECTIONS)
    for place in range(tables.count()):
        for column in tables.nth(place).evaluate(ORDERS):
            up, down = column["orders"]
            assert is_sorted(up, column["number"], False), (place, up)
            assert is_sorted(down, column["number"], True), (place, down)
            assert blocks(down) == blocks(up)[::-1]
            assert column["sort"] == "descending"
    assert problems == []
    page.context.close()


@pytest.mark.parametrize("how", ["click", "keyboard"])
@pytest.mark.parametrize("section", ["matrix", "latency", "files", "problems", *SECTIONS])
def test_tables_sort_by(how: str, section: str, shared: Page) -> None:
    if section in SECTIONS:
        shared.locator(f"#{section} figure:visible").first.locator("details").evaluate(
            "it => it.open = true"
        )
    table = shared.locator(f"#{section} table:visible").first
    head = table.locator("thead th:last-child")
    button = head.locator("button")
    before = head.get_attribute("aria-sort")
    if how == "click":
        button.click()
    else:
        button.focus()
        shared.keyboard.press("Enter")
    after = "descending" if before == "ascending" else "ascending"
    expect(head).to_have_attribute("aria-sort", after)
    keys = table.locator("tbody tr").evaluate_all(
        "rows => rows.map(row => row.lastElementChild.dataset.key ?? null)"
    )
    number = "num" in (head.get_attribute("class") or "")
    assert is_sorted(keys, number, after == "descending")


# For every drawing that is displayed: its marks that are empty, outside or invisible, and the
# labels of an axis that touch each other.
DRAWN = """() => [...document.querySelectorAll('.plot svg')]
  .filter(svg => svg.getClientRects().length)
  .map(svg => {
    const ground = getComputedStyle(svg.closest('figure')).backgroundColor;
    const frame = svg.getBoundingClientRect();
    const marks = [...svg.querySelectorAll('.mark-symbol [role="graphics-symbol"]')];
    const faulty = marks.filter(mark => {
      const box = mark.getBoundingClientRect(), style = getComputedStyle(mark);
      const colour = style.stroke;
      return !(box.width > 2 && box.height > 2 && colour.startsWith('rgb') && colour !== ground)
        || box.left < frame.left - 1 || box.right > frame.right + 1
        || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
    });
    const clashes = [];
    for (const axis of svg.querySelectorAll('.role-axis-label')) {
      const texts = [...axis.querySelectorAll('text')].filter(
        text => text.textContent && text.getAttribute('opacity') !== '0');
      texts.slice(1).forEach((text, index) => {
        const a = texts[index].getBoundingClientRect(), b = text.getBoundingClientRect();
        if (a.left < b.right && b.left < a.right && a.top < b.bottom - 2 && b.top < a.bottom - 2)
          clashes.push([texts[index].textContent, text.textContent]);
      });
    }
    const small = [...svg.querySelectorAll('text')].filter(
      text => text.textContent && text.getBoundingClientRect().height < 8);
    const title = svg.closest('figure').querySelector('figcaption').textContent;
    return {title, marks: marks.length, faulty: faulty.map(mark => mark.outerHTML), clashes,
            small: small.length, inside: frame.left >= 0 && frame.right <= innerWidth};
  })"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESK, PHONE])
def test_every_plot_is_drawn(
    width: int, scheme: Literal["light", "dark"], browser: Browser, report: Path
) -> None:
    page, problems = open_page(browser, report, width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate(REVEAL)
    plots: list[dict[str, Any]] = page.evaluate(DRAWN)
    assert len(plots) == page.locator("figure").count() > 0
    for plot in plots:
        assert plot["marks"] > 1, plot
        assert plot["faulty"] == plot["clashes"] == [], plot
        assert plot["small"] == 0 and plot["inside"], plot
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert problems == []
    page.context.close()


def test_colours_follow_the_scheme_and_the_button(browser: Browser, report: Path) -> None:
    page, _ = open_page(browser, report, scheme="dark")
    grounds = []
    for theme in ("system", "light", "dark"):
        expect(page.locator("#theme")).to_have_text(f"Theme: {theme}")
        grounds.append(
            page.evaluate(
                f"""[getComputedStyle(document.body).backgroundColor,
                     getComputedStyle(document.querySelector('{MARKS}')).stroke]"""
            )
        )
        page.locator("#theme").click()
    assert grounds[0] == grounds[2]
    assert all(a != b for a, b in zip(grounds[0], grounds[1], strict=True))
    page.reload()
    expect(page.locator("#theme")).to_have_text("Theme: system")  # the third click's
    page.context.close()


def test_every_plot_is_reached_by_keyboard_and_says_what_it_shows(shared: Page) -> None:
    for section in SECTIONS:
        plot = shared.locator(f"#{section} figure:visible .plot").first
        plot.focus()
        expect(plot).to_be_focused()
        expect(plot).to_have_accessible_name(re.compile(r".{60,}arrow keys lead through them\."))
    every = shared.locator(".plot").evaluate_all(
        "all => all.map(it => [it.tabIndex, it.ariaLabel])"
    )
    assert all(index == 0 and len(said) > 60 for index, said in every)


def test_arrow_keys_lead_through_the_values(shared: Page) -> None:
    plot = shared.locator("#density .plot").first
    marks, tip = plot.locator(MARKS), shared.locator("#tip")
    plot.focus()
    for key, place in [("ArrowRight", 0), ("ArrowRight", 1), ("ArrowLeft", 0), ("End", -1)]:
        shared.keyboard.press(key)
        mark = marks.nth(place)
        expect(mark).to_be_focused()
        expect(tip).to_be_visible()
        expect(tip).to_have_text(mark.get_attribute("aria-label") or "no label")
    shared.keyboard.press("Escape")
    expect(plot).to_be_focused()
    expect(tip).to_be_hidden()


def test_a_value_reached_by_keys_stays_shown_where_the_page_scrolls(shared: Page) -> None:
    plot, tip = shared.locator("#density .plot").first, shared.locator("#tip")
    plot.focus()
    shared.keyboard.press("ArrowRight")
    expect(tip).to_be_visible()
    mark, before = plot.locator(MARKS).first, tip.bounding_box()
    shared.evaluate("scrollBy(0, 40)")
    expect(tip).not_to_have_css("top", f"{before['y']}px" if before else "")
    expect(tip).to_have_text(mark.get_attribute("aria-label") or "no label")
    shared.keyboard.press("Escape")
    shared.evaluate("scrollTo(0, 0)")
    expect(tip).to_be_hidden()


def test_the_pointer_shows_the_nearest_value(shared: Page) -> None:
    mark = shared.locator(f"#density .plot {MARKS}").first
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    assert box is not None
    shared.mouse.move(box["x"] + 9, box["y"] + 9)
    expect(shared.locator("#tip")).to_have_text(mark.get_attribute("aria-label") or "no label")
    shared.mouse.move(0, 0)
    expect(shared.locator("#tip")).to_be_hidden()


def test_filters_narrow_tables_plots_and_choices(browser: Browser, report: Path) -> None:
    page, problems = open_page(browser, report)
    form = page.get_by_role("form", name="Show only")
    form.get_by_label("model").select_option(HOSTILE)
    form.get_by_label("threads").select_option("2")
    rows = page.locator("#latency tbody tr:visible th")
    expect(rows.first).to_be_visible()
    expect(rows.filter(has_not_text=HOSTILE)).to_have_count(0)
    titles = page.locator("#density figcaption:visible")
    expect(titles.first).to_be_visible()
    for said in (HOSTILE, "2 threads"):
        expect(titles.filter(has_not_text=said)).to_have_count(0)
    # Only runs on one thread were profiled.
    expect(page.locator("#layers figure:visible")).to_have_count(0)
    form.get_by_label("threads").select_option("")
    expect(page.locator("#layers figcaption:visible")).to_contain_text(HOSTILE)
    assert problems == []
    page.context.close()


def test_one_case_of_the_layers_is_shown_at_a_time(browser: Browser, report: Path) -> None:
    page, _ = open_page(browser, report)
    choice = page.locator("#layers .picker select")
    for label in choice.locator("option").all_text_contents()[:3]:
        choice.select_option(label=label)
        expect(page.locator("#layers figcaption:visible")).to_have_text([label])
    page.context.close()
