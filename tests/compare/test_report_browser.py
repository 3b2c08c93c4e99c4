"""The report in a headless Chromium: offline, narrow, printed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import browser, needs_browser, showing  # noqa: F401
from synthetic_study import write_report_of

pytestmark = needs_browser


@pytest.fixture(scope="module")
def page_file(whole_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(whole_study, tmp_path_factory.mktemp("browser") / "study")
    return write_report_of(folder)


@pytest.fixture
def show(browser, page_file) -> Iterator:  # noqa: F811
    """Open the report offline; afterwards check that nothing was requested and nothing failed."""
    with showing(browser, page_file) as opened:
        yield opened


def test_narrow_screen_scrolls_tables_only(show):
    page = show(viewport={"width": 390, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    wide = page.locator("#table-results")
    assert wide.evaluate("(box) => box.scrollWidth > box.clientWidth")
    for chart in page.locator("img.chart").all():
        box = chart.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    scale = page.locator(".pair img").evaluate_all("(all) => all.map((chart) => chart.width / chart.naturalWidth)")
    assert min(scale) * 96 / 72 * 9 > 8, "the smallest text of a chart, 9 points, in pixels"


def test_print_shows_what_is_folded(show):
    page = show()
    page.emulate_media(media="print")
    assert page.locator("details table").first.is_visible()
    hidden = page.locator("main section").evaluate_all("(all) => all.filter((s) => s.offsetHeight < 20).length")
    assert hidden == 0
