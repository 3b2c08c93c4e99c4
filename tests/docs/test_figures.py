"""Pictures of the pages have a description and a caption, are deterministic, and use the colours of the page."""

import json
import re
from importlib import import_module
from xml.etree import ElementTree

import pytest
from snippets import PAGES, ROOT

DRAWN = [
    (page.stem, *found.groups())
    for page in PAGES
    for found in re.finditer(r"```\{drawn\} ([^\n]+)\n:alt: ([^\n]*)\n\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
]
MODULES = sorted(path.stem for path in (ROOT / "docs" / "figures").glob("*.py"))


def test_pictures_have_descriptions_and_captions():
    asked = sum(page.read_text(encoding="utf-8").count("```{drawn}") for page in PAGES)
    assert asked == len(DRAWN)
    assert all(len(alt) > 60 and len(caption) > 60 for _, _, alt, caption in DRAWN)


def test_figure_modules_are_used():
    assert {arguments.split()[0] for _, arguments, _, _ in DRAWN} | {"main_result"} == set(MODULES)


def test_picture_of_the_readme_shows_the_stored_measurements(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "extensions")
    monkeypatch.syspath_prepend(ROOT / "docs")
    picture = import_module("figures.main_result")
    description = ElementTree.parse(picture.PICTURE).find(".//{http://purl.org/dc/elements/1.1/}description")
    stored = [[picture.Point(*values) for values in panel] for panel in json.loads(description.text)]
    assert stored == [picture.study(), picture.small()], "run docs/figures/main_result.py"
    assert f"({picture.PICTURE.relative_to(ROOT)})" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", ["circuit ry_ladder 4 2", "probabilities", "columns", "even"])
def test_picture_is_deterministic_and_uses_the_colours_of_the_page(arguments, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    monkeypatch.syspath_prepend(ROOT / "docs" / "extensions")
    style = import_module("figure_style")
    name, *sizes = arguments.split()
    drawing = import_module(f"figures.{name}")

    def picture():
        with style.style(name):
            return style.inline(style.to_svg(drawing.draw(*sizes)), "description")

    svg = picture()
    assert svg == picture()
    assert not re.findall(r"#[0-9a-f]{6}\b", svg), "such a colour would not follow the theme"
