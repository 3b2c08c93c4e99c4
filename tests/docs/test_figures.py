"""The picture of the README shows the stored measurements."""

from importlib import import_module
from xml.etree import ElementTree


def test_picture_of_the_readme_shows_the_stored_measurements(monkeypatch, request):
    root = request.config.rootpath
    monkeypatch.syspath_prepend(root / "docs" / "extensions")
    monkeypatch.syspath_prepend(root / "docs")
    picture = import_module("figures.main_result")
    description = ElementTree.parse(picture.PICTURE).find(".//{http://purl.org/dc/elements/1.1/}description")
    assert picture.described(description.text) == picture.measured(), "run make results"
    assert f"({picture.PICTURE.relative_to(root)})" in (root / "README.md").read_text(encoding="utf-8")
