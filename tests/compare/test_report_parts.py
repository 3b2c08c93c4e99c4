"""Parts of the report with one right answer: how values are written, tables, kinds of methods, the Pareto front."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t
from synthetic_study import summary_of

from qpeft.compare.analysis.front import front_of, pareto_front
from qpeft.compare.analysis.statistics import describe, paired_difference
from qpeft.compare.report import format as texts
from qpeft.compare.report.charts import half_width
from qpeft.compare.report.format import KINDS, kind_of
from qpeft.compare.report.plotting import drawing, label_axes, save
from qpeft.compare.report.table import Table, to_csv


def difference(*values: float):
    return paired_difference(dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0), "lora", True)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (texts.count(294_912), "294,912"),
        (texts.count(None), "\u2013"),
        (texts.decimal(1234.56789), "1,234.5679"),
        (texts.mean_sd(describe({0: 3.05, 1: 3.06})), "3.0550 ± 0.0071"),
        (texts.mean_sd(describe({0: 4.6})), "4.6000"),
        (texts.mean_sd(describe({0: 0.911, 1: 0.913}), 2, factor=100), "91.20 ± 0.14"),
        (texts.mean_sd(None), "\u2013"),
        (texts.interval(difference(0.05)), "+0.0500"),
        (texts.interval(difference(-0.06, -0.07)), "-0.0650 [-0.1285, -0.0015]"),
        (texts.interval(difference(0.00002, 0.00003, 0.00004)), "+0.000030 [+0.000005, +0.000055]"),
        (texts.interval(difference(0.5, 0.5, 0.5)), "+0.5000 [+0.5000, +0.5000]"),
        (texts.interval(None), "\u2013"),
        (texts.settings({"r": 8, "alpha": 0.50, "target_modules": ["q", "v"]}), "r=8, alpha=0.5, target_modules=q+v"),
    ],
)
def test_values_as_text(found, expected):
    assert found == expected


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 20)), min_size=1, max_size=12),
    st.booleans(),
)
def test_pareto_front_is_what_no_other_point_dominates(points, lower_is_better):
    def dominates(one, other):
        as_good = one[1] <= other[1] if lower_is_better else one[1] >= other[1]
        return one[0] <= other[0] and as_good and one != other

    expected = {point for point in points if not any(dominates(other, point) for other in points)}
    found = pareto_front(dict(zip(map(str, range(len(points))), points, strict=True)), lower_is_better)
    assert [points[int(key)] for key in found] == sorted(expected)


def test_front_names_methods_that_are_not_shown_to_differ(whole_study):
    summary = summary_of(whole_study)
    found = {one.method.key: one for one in front_of(summary, lambda method: method.trainable)}
    assert list(found) == ["none", "quantum_peft", "quantum_peft@qaa", "qpa_noise", "lora", "full"]
    assert [one.size for one in found.values()] == [0, 1_240, 2_480, 16_382, 32_768, 1_400_000]
    assert [other.key for other in found["qpa_noise"].rivals] == ["qpa"]
    assert [other.key for other in found["lora"].rivals] == ["twin"]
    assert found["full"].rivals == []


def test_front_has_no_method_with_a_failed_seed_or_without_the_size(whole_study):
    summary = summary_of(whole_study)
    sizes = {"vera": 1, "ia3": 2, "qpa": 3}  # a seed of the first two failed
    assert [one.method.key for one in front_of(summary, lambda method: sizes.get(method.key))] == ["qpa"]


def test_half_width_is_that_of_the_t_interval():
    low, high = t.interval(0.95, 2, loc=3.1, scale=0.1 / 3**0.5)
    assert describe({0: 3.0, 1: 3.2, 2: 3.1}).half_width == pytest.approx((high - low) / 2)
    assert describe({0: 3.0}).half_width is None


def test_band_of_a_loss_curve_is_the_interval_of_the_mean():
    frame = pd.DataFrame({0: [4.0, 3.0], 1: [4.0, 3.2], 2: [4.0, 3.1]})
    low, high = t.interval(0.95, 2, loc=3.1, scale=0.1 / 3**0.5)
    assert half_width(frame).to_list() == pytest.approx([0.0, (high - low) / 2])
    assert half_width(frame[[0]]).to_list() == [0.0, 0.0]


def test_kinds_differ_in_sign_and_marker(whole_study):
    summary = summary_of(whole_study)
    assert len({kind.sign for kind in KINDS}) == len({kind.marker for kind in KINDS}) == len(KINDS)
    expected = {"lora": "reference", "qpa": "quantum", "qpa_noise": "control", "none": "base", "vera": "classical"}
    assert {key: kind_of(summary[key], summary).key for key in expected} == expected


def test_table_leaves_out_empty_columns_and_detects_numeric_ones():
    texts = {"name": ["", ""], "empty": ["", "\u2013"], "number": ["1 ± 2", "> 150 (3/5)"], "text": ["1", "x"]}
    table = Table.of("t", "", [0, 1], {title: column.__getitem__ for title, column in texts.items()})
    assert table.columns == ["name", "number", "text"]
    assert table.numeric == {"number"}


@pytest.mark.parametrize("text", ["two\nlines", "two\r\nlines\n", "two\u2028lines"])
def test_cell_of_markdown_is_one_line(text):
    table = Table.of("t", "c", [text], {"Name": str, "Note": lambda _: "x"})
    assert table.markdown().split("\n")[2:] == ["| two lines | x |"]


def test_markdown_contains_no_html():
    table = Table.of("t", "c", ["<script>alert(1)</script>"], {"Name": str})
    assert r"| \<script>alert(1)\</script> |" in table.markdown()


def test_markdown_escapes_vertical_bars():
    table = Table.of("t", "", ["a | b"], {"name": str, "n": lambda _: "1"})
    assert table.markdown().splitlines() == ["| name | n |", "| --- | --- |", r"| a \| b | 1 |"]


def test_csv_groups_columns_and_keeps_types_and_precision():
    records = [{"key": "a", "x.n": 3, "y": True, "x.mean": 0.1 + 0.2}, {"key": "b", "x.n": None, "y": False}]
    expected = ["key,x.n,x.mean,y", "a,3,0.30000000000000004,True", "b,,,False"]
    assert to_csv(records, ("key",)).splitlines() == expected
    assert to_csv([], ("key", "n")) == "key,n\n"


class Image(HTMLParser):
    def handle_starttag(self, tag, attrs):
        self.tag, self.attributes = tag, dict(attrs)


def test_chart_text_is_escaped_and_described():
    label = "</text><script>1</script> $\\frac$ 漢"
    with drawing(100) as (figure, axes):
        label_axes(axes, label, "")
        chart = save(figure, "name", 'a "title" <b>')
    found = [element.text for element in ET.fromstring(chart.svg).iter("{http://www.w3.org/2000/svg}text")]
    assert label in found
    page = Image()
    page.feed(chart.image)
    assert (page.tag, page.attributes["alt"]) == ("img", 'a "title" <b>')
