"""The report and charts of a synthetic study; `test_report_browser` opens it in a browser."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from synthetic_study import drop_rows, edit_rows, summary_of, write_report_of, write_tables_of

VOID = {"meta", "link", "input", "br", "hr", "img"}
HOSTILE = "<script>alert('label')</script> & \"quoted\" $x^2$ 漢字"


class Page(HTMLParser):
    """The elements in their order; each must be closed in the right place."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def written(whole_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(whole_study, tmp_path_factory.mktemp("report") / "study")
    write_report_of(folder)
    return folder


def report(folder: Path) -> Page:
    return Page(write_report_of(folder).read_text(encoding="utf-8"))


def edit_study(folder: Path, **changes) -> None:
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    (folder / "study.json").write_text(json.dumps(study | changes), encoding="utf-8")


def test_report_is_deterministic(written):
    before = {path: path.read_bytes() for path in [written / "report.html", *(written / "plots").glob("*.svg")]}
    write_report_of(written)
    assert len(before) > 10
    assert {path: path.read_bytes() for path in before} == before


def test_page_is_valid_html_and_loads_nothing(written):
    page = Page((written / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    links = [attrs[name] for _, attrs in page.tags for name in ("src", "href") if name in attrs]
    assert links
    assert all(link is not None and link.startswith(("#", "data:")) for link in links)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link and link.startswith("#")} <= set(ids)
    css = (written / "report.html").read_text(encoding="utf-8")
    assert "@import" not in css
    assert "url(" not in css


def test_page_contains_sentences_limits_failures_and_counts(written):
    page = Page((written / "report.html").read_text(encoding="utf-8"))
    summary = summary_of(written)
    texts = [summary.study.question, summary.study.command, *summary.limits, *summary.sentences.values()]
    for text in texts:
        assert text in page.text
    for row in summary.failures:
        assert row.cell_id in page.text
        assert row.status in page.text
    assert "a planted crash" in page.text
    assert "0.01: diverged" in page.text  # a trial
    assert ": failed" not in page.text
    for method in summary.methods:
        assert f"{method.trainable:,}" in page.text
        if method.difference is not None and method.method != "none":
            assert f"seeds-{method.key}" in {path.stem for path in (written / "plots").iterdir()}


def test_charts_are_valid_svg_and_in_the_page_with_descriptions(written):
    page = Page((written / "report.html").read_text(encoding="utf-8"))
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    embedded = {unquote(attrs["src"].partition(",")[2]).encode() for attrs in images}
    charts = {path.read_bytes() for path in (written / "plots").glob("*.svg")}
    assert embedded == charts
    assert len({attrs["alt"] for attrs in images}) == len(images)
    for svg in charts:
        assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert b"<dc:date>" not in svg


def test_page_begins_with_the_answer_quality_by_parameters_and_loss_curves(written):
    page = Page((written / "report.html").read_text(encoding="utf-8"))
    first = page.text.index(summary_of(written).headlines[0])
    assert page.text.index("Answers", page.text.index("Environment")) < first < page.text.index("Each method compared")
    alts = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert alts[:2] == ["Test loss against trainable parameters", "Validation loss against steps"]
    assert {"50 %", "80 %", "95 %"} <= set(chart_texts(written / "plots" / "convergence-steps.svg"))


def chart_texts(path: Path) -> list[str]:
    """The texts of a chart in their order."""
    return [element.text or "" for element in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_controls_follow_their_method_in_table_and_chart(written):
    page = Page((written / "report.html").read_text(encoding="utf-8"))
    results = page.text[page.text.index("over seeds, best first, controls") :]
    in_table = re.findall(r"[◆●■▲✕] (\w+)", results)[:12]
    in_chart = [text.removeprefix("↳ ") for text in chart_texts(written / "plots" / "differences.svg")]
    for order in (in_table, in_chart):
        assert order[order.index("qpa") + 1] == "qpa_noise"
        assert order[order.index("qaa") + 1] == "qaa_linear"
    assert in_table[0] == "full"
    assert "none" not in in_chart


def test_text_of_study_and_rows_is_escaped(study_folder):
    study = json.loads((study_folder / "study.json").read_text(encoding="utf-8"))
    for method in study["methods"]:
        method["label"] = method["note"] = HOSTILE
        method["settings"] = {"name": HOSTILE}
    edit_study(study_folder, methods=study["methods"], title=HOSTILE, question=HOSTILE, command=HOSTILE)

    def damage(row):
        row |= {"status": "failed", "error_msg": HOSTILE, "error_type": HOSTILE, "traceback_tail": HOSTILE}
        row["env"]["device"] = HOSTILE

    edit_rows(study_folder, damage, "qaa")
    page = report(study_folder)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert page.text.count("<script>alert('label')</script>") > 10


def test_matplotlib_settings_of_the_user_have_no_effect(written):
    import matplotlib

    before = (written / "plots" / "trainable.svg").read_bytes()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        write_report_of(written)
    assert (written / "plots" / "trainable.svg").read_bytes() == before


def test_study_without_rows_has_a_summary_tables_and_a_page(written, tmp_path):
    folder = shutil.copytree(written, tmp_path / "study")
    drop_rows(folder)
    summary = write_tables_of(folder)
    assert all(set(method.statuses.values()) == {"missing"} for method in summary.methods)
    assert all(method.metric is method.difference is method.rank is None for method in summary.methods)
    assert summary.sentences["qpa"] == "QPA has no result yet. Of its 5 seeds: 5 missing."
    assert summary.n_comparisons == 0
    assert (folder / "results.jsonl").read_text() == ""
    assert "75 of 75 runs are missing" in (folder / "summary.md").read_text()
    page = report(folder)
    assert "runs are missing: the study is not finished" in page.text
    assert "None: no run failed" in page.text
    assert "No method has a result yet." in page.text
    assert list((folder / "plots").glob("*.svg")) == []  # those of the rows before are removed


def test_charts_are_not_written_through_a_link(study_folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (study_folder / "plots").symlink_to(tmp_path / "elsewhere")
    drop_rows(study_folder, "[!lq]*")
    write_report_of(study_folder)
    assert list((study_folder / "plots").iterdir())
    assert not list((tmp_path / "elsewhere").iterdir())


def test_accuracy_is_shown_in_percent(study_folder):
    edit_study(study_folder, metric="test_accuracy", task="text-classification")

    def score(row):
        if "test_loss" in row["quality"]:
            row["quality"]["test_accuracy"] = 1.2 - row["quality"]["test_loss"] / 8

    edit_rows(study_folder, score)
    page = report(study_folder)
    assert "Test accuracy (%), higher is better" in page.text
    summary = summary_of(study_folder)
    full = summary["full"]
    assert full.metric is not None
    assert f"{100 * full.metric.mean:.4f} ±" in page.text
    assert full.difference is not None
    assert f"+{100 * full.difference.mean:.4f} [" in page.text
    svg = (study_folder / "plots" / "trainable.svg").read_text(encoding="utf-8")
    assert "Test accuracy (%), higher is better" in svg


def test_charts_of_layers_and_of_pruned_ranks(study_folder):
    def measure(row):
        if row["capacity"]:
            row["capacity"]["blocks"] = [{"layer": i, "effective_rank": 2.0 + i, "cka": 0.9} for i in range(3)]
            modules = [{"weight_numerical_rank": rank, "update_ratio": 0.1} for rank in (2, 2, None)]
            row["capacity"]["modules"] = [*modules, {"weight_numerical_rank": None, "update_ratio": None}]

    edit_rows(study_folder, measure)
    edit_rows(study_folder, lambda row: row["method_config"].update(method="sora"), "twin")
    study = json.loads((study_folder / "study.json").read_text(encoding="utf-8"))
    for method in study["methods"]:
        method["method"] = "sora" if method["key"] == "twin" else method["method"]
    edit_study(study_folder, methods=study["methods"])
    page = report(study_folder)
    assert "15 adapted modules; the rank of 5 more was not measured. Rank 0: every rank was pruned" in page.text
    assert (study_folder / "plots" / "layers-cka.svg").exists()
    texts = chart_texts(study_folder / "plots" / "ranks-twin.svg")
    assert {"5", "10"} <= set(texts[-3:])  # five seeds: one module of rank 0, two of rank 2


def test_costs_name_where_times_were_measured(study_folder):
    edit_rows(study_folder, lambda row: row["env"].update({"device": "another machine"}), "qpa", "cost")
    assert "times of different machines are not comparable" in report(study_folder).text
    drop_rows(study_folder, name="cost")
    assert "Times have not been measured yet." in report(study_folder).text
