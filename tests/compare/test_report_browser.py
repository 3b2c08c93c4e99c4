"""The report in a headless Chromium: offline, narrow, light and dark, printed, by keyboard, without JavaScript."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import CONTRAST, browser, needs_browser, showing  # noqa: F401
from synthetic_study import write_report_of

pytestmark = needs_browser

KEY_TEXTS = (
    "h1", ".question", ".facts dt", ".notice", "nav a", ".answers p", ".verdict.better", ".verdict.worse",
    ".verdict.no", ".small", "caption", "thead th", "tbody td", ".mark.quantum", ".mark.control",
    ".mark.classical", ".status", "pre", "footer p",
)  # fmt: skip


@pytest.fixture(scope="module")
def page_file(whole_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(whole_study, tmp_path_factory.mktemp("browser") / "study")
    return write_report_of(folder)


@pytest.fixture
def show(browser, page_file) -> Iterator:  # noqa: F811
    """Open the report offline; afterwards check that nothing was requested and nothing failed."""
    with showing(browser, page_file) as opened:
        yield opened


def keys(sheet) -> list[str]:
    """The names of the visible rows, in their order."""
    return [name.strip("↳◆●■▲✕ ") for name in sheet.locator("tbody tr:visible th").all_inner_texts()]


def test_narrow_screen_scrolls_tables_only(show):
    page = show(viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    wide = page.locator("#table-results .scroll")
    assert wide.evaluate("(box) => box.scrollWidth > box.clientWidth")
    for chart in page.locator("img.chart").all():
        box = chart.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
    scale = page.locator(".pair img").evaluate_all("(all) => all.map((chart) => chart.width / chart.naturalWidth)")
    assert min(scale) * 96 / 72 * 9 > 8, "the smallest text of a chart, 9 points, in pixels"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(show, scheme):
    page = show(color_scheme=scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
    assert brightness < 60 if scheme == "dark" else brightness > 240
    for selector in KEY_TEXTS:
        found = page.locator(selector)
        assert found.count() > 0, selector
        worst = min(found.evaluate_all(f"(all) => all.map({CONTRAST})"))
        assert worst >= 4.5, (selector, worst)


def test_header_sorts_ascending_descending_and_back(show):
    page = show()
    sheet = page.locator("#table-results")
    as_written = keys(sheet)
    head = sheet.locator("thead th", has_text="Trainable")
    button = head.locator("button")
    button.click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert keys(sheet)[:3] == ["none", "quantum_peft", "ia3"]
    button.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert keys(sheet)[:1] == ["full"]
    button.press("Space")
    assert head.get_attribute("aria-sort") is None
    assert keys(sheet) == as_written
    sheet.locator("thead button", has_text="Rank").click()
    ranks = sheet.locator("tbody tr td:nth-child(2)").all_inner_texts()
    numbers = [int(rank) for rank in ranks if rank.isdigit()]
    assert numbers == sorted(numbers)
    assert "\u2013" in ranks
    assert set(ranks[len(numbers) :]) == {"\u2013"}, "missing values are last"


def test_filter_hides_rows_and_print_shows_all(show):
    page = show()
    sheet = page.locator("#table-results")
    everything = keys(sheet)
    field = sheet.get_by_label("Filter rows")
    field.fill("QPA")
    assert keys(sheet) == ["qpa", "qpa_noise"]
    assert sheet.locator("output").inner_text() == f"2 of {len(everything)} rows"
    field.fill("no such method")
    assert keys(sheet) == []
    page.emulate_media(media="print", color_scheme="dark")
    assert keys(sheet) == everything
    assert not sheet.locator(".tools").is_visible()
    assert page.locator("details pre").first.is_visible()
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(28, 29, 32)"
    hidden = page.locator("main section").evaluate_all("(all) => all.filter((s) => s.offsetHeight < 20).length")
    assert hidden == 0


def test_page_is_complete_without_javascript(show):
    page = show(java_script_enabled=False)
    assert page.locator("thead button").count() == 0
    assert page.locator("#table-results tbody tr").count() == 12
    assert page.locator("img.chart").count() > 10
