"""The drawings of the adapters: the committed ones are those of the code, and their texts can be read."""

from itertools import combinations
from xml.etree import ElementTree

import method_drawings
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

SVG = "{http://www.w3.org/2000/svg}"
WIDE = FontProperties(family="DejaVu Sans")  # wider than the fonts of usual systems


def boxes(svg):
    """Left, top, right and bottom of each text outside of the shapes, in pixels."""
    for text in svg.findall(f"{SVG}text"):
        wide = TextPath((0, 0), text.text, size=12, prop=WIDE).get_extents().x1
        shift = wide / 2 if text.get("text-anchor") == "middle" else 0
        left = float(text.get("x")) - shift
        base = float(text.get("y"))
        yield left, base - 10, left + wide, base + 3


def test_drawings_are_those_of_the_code_and_can_be_read():
    for file, drawn in method_drawings.drawings().items():
        assert file.read_text(encoding="utf-8") == drawn, f"{file.name}: run make results"
        svg = ElementTree.fromstring(drawn)
        placed = list(boxes(svg))
        assert len(placed) > 10
        for left, _, right, bottom in placed:
            assert 4 < left < right < method_drawings.WIDTH - 4, file.name
            assert bottom < float(svg.get("height")), file.name
        for a, b in combinations(placed, 2):
            assert a[2] < b[0] or b[2] < a[0] or a[3] <= b[1] or b[3] <= a[1], file.name
