"""The report: one page that opens anywhere, shows the values of the rows, and names no machine; and
the CSV files.
"""

import itertools
import re
import xml.etree.ElementTree as ET
from html import unescape
from html.parser import HTMLParser
from statistics import fmean
from urllib.parse import unquote

import pytest
from matplotlib.text import Text
from published_study import (
    drop_rows,
    edit_rows,
    edit_study,
    score_classes,
    stored_rows,
    write_report_of,
)

from qpeft_lab.compare import charts, report
from qpeft_lab.compare.stats import Difference
from qpeft_lab.compare.summary import load

SIGNS = "↳◆●■▲✕ "
SOURCE = "arXiv 0000.00000, table 2"


pytestmark = pytest.mark.xdist_group("report")  # one process makes the page of the fixture


@pytest.fixture(scope="module")
def page(whole_study):
    return report.page(load(whole_study))


def table_of(page, name):
    """The cells of a table as lists of texts, without its head."""
    found = page.partition(f'id="table-{name}"')[2].partition("</table>")[0].partition("<tbody>")[2]
    rows = found.split("<tr>")[1:]
    return [
        [re.sub(r"<[^>]+>", "", cell).strip() for cell in re.split(r"</t[hd]>", row)[:-1]]
        for row in rows
    ]


def publish(folder, key, *published):
    edit_study(folder, lambda _, methods: methods[key].update(published=list(published)))


def test_page_is_valid_html_small_and_loads_nothing(page):
    class Reader(HTMLParser):
        opened, ids, addresses = [], [], []
        alone = ("meta", "link", "img", "br")

        def handle_starttag(self, tag, attrs):
            found = dict(attrs)
            self.ids += [found["id"]] if "id" in found else []
            self.addresses += [found[name] for name in ("src", "href") if name in found]
            self.opened += [] if tag in self.alone else [tag]

        def handle_endtag(self, tag):
            assert self.opened.pop() == tag

    reader = Reader()
    reader.feed(page)

    assert reader.opened == []
    assert len(set(reader.ids)) == len(reader.ids)
    assert all(address.startswith(("data:", "#")) for address in reader.addresses)
    assert "<script" not in page
    assert len(page.encode()) < 300_000


def test_page_has_the_answer_the_table_the_charts_the_limits_and_the_learning_rates(
    page, whole_study
):
    summary = load(whole_study)
    assert f'<p class="headline">{summary.answers[0]}</p>' in unescape(page)

    rows = table_of(page, "results")
    assert [unescape(row[0].lstrip(SIGNS)) for row in rows] == [
        found.label for found in summary.ordered
    ]
    assert 2 <= page.count('<img class="chart"') <= 4

    limits = page.partition('<section id="limits">')[2].partition("</section>")[0]
    assert limits.count("<li>") == len(summary.limits)

    rates = {row[0]: row[1:] for row in table_of(page, "rates")}
    chosen, *trials = rates["● QPA over LoRA r=8, half its parameters"]
    assert chosen == "0.00015 (lowest)"
    assert "0.005: diverged" in trials
    assert "a planted | crash in x.py" in page  # without the folder of the machine
    assert "/home/" not in page


def test_differences_have_one_sign_convention(page, whole_study):
    summary = load(whole_study)
    rows = {unescape(row[0].lstrip(SIGNS)): row for row in table_of(page, "results")}
    for key, to in (("quantum_peft", "lora"), ("bias_only", "qaa"), ("bottleneck@qaa", "qaa")):
        found = summary[key]
        expected = found.metric.mean - summary[to].metric.mean
        assert found.difference.mean == pytest.approx(expected)
        assert f"{expected:+.4f} [" in rows[found.label][3]
        assert rows[found.label][2] == summary[to].label


def test_charts_are_valid_svg_and_deterministic(whole_study, page):
    summary = load(whole_study)
    for make in (charts.differences, charts.sizes, charts.curves):
        chart = make(summary)
        ET.fromstring(chart.svg)
        assert chart.title
        assert chart.svg == make(summary).svg
    assert report.page(summary) == page


def test_loss_curves_are_means_over_seeds_with_their_labels(study_folder):
    curves = {0: [[0, 5.0, 0.0], [20, 3.0, 1.0]], 1: [[0, 5.0, 0.0], [20, 4.0, 1.0]]}
    drop_rows(study_folder, "qpa", "seed[2-4]")
    edit_rows(study_folder, lambda row: row.update(curve=curves[row["seed"]]), "qpa", "seed*")
    summary = load(study_folder)

    assert charts._mean_curve(summary["qpa"]).to_dict() == {0: 5.0, 20: 3.5}

    svg = unescape(charts.curves(summary).svg)
    shown = [
        f.label
        for f in summary.ordered
        if f.method.rates and f.method.role != "equal_budget" and f.key != "prefix"
    ]
    assert all(f">{label}<" in svg for label in shown)
    assert ">prefix tuning<" not in svg  # worse than the untrained base


@pytest.fixture
def drawn(monkeypatch):
    """The figures of the charts that are made, in this order."""
    figures = []
    monkeypatch.setattr(charts, "as_svg", lambda figure: figures.append(figure) or "<svg/>")
    return figures


def test_interval_that_ends_outside_the_chart_has_an_arrow(study_folder, drawn):
    inside = charts.differences(load(study_folder))
    edit_rows(
        study_folder,
        lambda row: row.update(test_loss=2.86 + (row["seed"] - 2) * 2),
        "bottleneck",
        "seed*",
    )
    outside = charts.differences(load(study_folder))

    assert charts.AN_ARROW in outside.caption
    assert charts.AN_ARROW not in inside.caption

    arrows = [[line for line in f.axes[0].lines if line.get_marker() in "<>"] for f in drawn]
    assert not arrows[0]
    assert {line.get_xdata()[0] for line in arrows[1]} == set(drawn[1].axes[0].get_xlim())


def test_labels_of_curves_are_below_the_title(study_folder, drawn):
    curve = [[0, 2.0, 0.0], [20, 3.0, 1.0], [40, 3.0, 2.0]]
    edit_rows(study_folder, lambda row: row.update(curve=curve), "*", "seed*")
    charts.curves(load(study_folder))
    drawn[0].draw_without_rendering()  # which places the labels
    (axes,) = drawn[0].axes
    title = next(text for text in (axes.title, axes._left_title) if text.get_text())
    lowest = title.get_window_extent().y0
    # without the lines from the labels to the curves
    tops = sorted(Text.get_window_extent(label).y1 for label in axes.texts)

    assert len(tops) == 10
    assert tops[-1] <= lowest
    assert min(high - low for low, high in itertools.pairwise(tops)) > 8


def test_page_of_a_study_without_tuning_and_costs_says_nothing_about_them(page, study_folder):
    def use_one_rate(study, methods):
        study["tuning"]["grid"] = [1.0]
        for method in methods.values():
            method["rates"] = method["rates"][:1]

    edit_study(study_folder, use_one_rate)
    drop_rows(study_folder, "*", "lr*")
    drop_rows(study_folder, "*", "cost")
    plain = report.page(load(study_folder))
    for text in ("that tuning chose", "Steps and memory were measured"):
        assert text in page
        assert text not in plain


def test_verdict_is_next_to_the_method_and_no_sign_reads_as_equal(page):
    rows = table_of(page, "results")
    assert {row[1] for row in rows} == {"", "▲ better", "▼ worse", "no difference shown"}


def test_ranks_of_updates_are_a_column_and_older_rows_have_none(study_folder):
    edit_rows(
        study_folder, lambda row: row.update(rank_numerical=8, rank_effective=6.41), "qpa", "seed*"
    )
    frame = report.results(load(study_folder)).frame.set_index("Method")["Update rank (effective)"]
    assert frame["● QPA over LoRA r=8, half its parameters"] == "8.0 (6.4)"
    assert frame["◆ LoRA r=8"] == report.MISSING


def test_published_values_are_next_to_those_measured(study_folder):
    publish(
        study_folder,
        "qpa",
        {"value": 4.125, "source": f"<script>{SOURCE}", "note": "second hand"},
        {"value": 23000, "metric": "trainable", "source": SOURCE},
        {"value": 20.5, "metric": "bleu", "source": SOURCE},
    )
    loss, count, bleu = table_of(report.page(load(study_folder)), "published")
    mean = fmean(row["test_loss"] for row in stored_rows(study_folder, "qpa", "seed*"))
    measured = f"{mean:.4f} ± {load(study_folder)['qpa'].metric.sd:.4f}"

    assert loss[2:5] == ["4.125", measured, f"{mean - 4.125:+.4f}"]
    assert loss[5] == f"&lt;script&gt;{SOURCE} (second hand)"
    assert count[2:5] == ["23,000", "23,115", "+115"]
    assert bleu[2:5] == ["20.5", report.MISSING, report.MISSING]


def test_accuracy_is_shown_in_percent(study_folder):
    edit_study(study_folder, score_classes)
    edit_rows(
        study_folder, lambda row: row.update(test_accuracy=0.9 + row["seed"] / 100), "*", "seed*"
    )
    publish(study_folder, "qpa", {"value": 91.5, "source": SOURCE})
    page = report.page(load(study_folder))

    assert table_of(page, "published")[0][2:5] == ["91.5", "92.0000 ± 1.5811", "+0.5000"]
    assert "Test accuracy (%)" in page
    assert "percentage points" in unquote(page)


def test_study_without_rows_has_a_page(study_folder):
    drop_rows(study_folder)
    page = write_report_of(study_folder).read_text(encoding="utf-8")
    assert "No method has a result yet." in page
    assert "120 of 120 runs are missing" in page
    assert "<img" not in page


def test_values_as_text():
    assert report.decimal(1234.56789) == "1,234.5679"
    narrow = Difference("lora", 1e-6, 5e-7, 1.5e-6, 5, 0.01, 0.01, "worse")
    assert report.interval(narrow) == "+0.000001 [+0.000000, +0.000002]"


@pytest.mark.parametrize(
    "text, shown",
    [
        ("--base /home/me/models/gpt2 --data ../shared/a.txt", "--base gpt2 --data a.txt"),
        ("recipes/x.yaml and/or https://a.b/c", "recipes/x.yaml and/or https://a.b/c"),
        ("'~/x/y.txt'", "'y.txt'"),
    ],
)
def test_folders_of_a_machine_are_not_shown(text, shown):
    assert report.without_folders(text) == shown
