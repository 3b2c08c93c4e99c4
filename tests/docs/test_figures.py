"""The pictures of the pages: described in words, the same each time, in the page's own colours."""

import re
from importlib import import_module

import pytest
from snippets import PAGES, ROOT

from qpeft.compare.report import canvas

DRAWN = [
    (page.stem, *found.groups())
    for page in PAGES
    for found in re.finditer(r"```\{drawn\} ([^\n]+)\n:alt: ([^\n]*)\n\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
]
MODULES = sorted(path.stem for path in (ROOT / "docs" / "figures").glob("*.py"))


def test_every_picture_has_words_for_who_cannot_see_it_and_a_caption():
    asked = sum(page.read_text(encoding="utf-8").count("```{drawn}") for page in PAGES)
    assert asked == len(DRAWN)
    assert all(len(alt) > 60 and len(caption) > 60 for _, _, alt, caption in DRAWN)


def test_every_drawing_is_on_a_page():
    assert {arguments.split()[0] for _, arguments, _, _ in DRAWN} == set(MODULES)


@pytest.mark.parametrize("arguments", ["circuit ry_ladder 4 2", "probabilities", "columns", "even"])
def test_a_picture_is_the_same_each_time_and_its_colours_are_the_page_s(arguments, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    name, *sizes = arguments.split()
    drawing = import_module(f"figures.{name}")

    def picture():
        with canvas.style(name):
            return str(canvas.inline(canvas.to_svg(drawing.draw(*sizes)), name, "words"))

    svg = picture()
    assert svg == picture()
    assert not re.findall(r"#[0-9a-f]{6}\b", svg), "a colour of its own would not change with the page's"
