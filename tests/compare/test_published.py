"""Published values of a study: read from its file, stored with it, shown next to the measured ones."""

import csv
import json
from statistics import fmean

import pytest
from synthetic_study import edit_json, edit_rows, stored_rows, summary_of, write_report_of, write_tables_of

from qpeft.compare.plan import make_plan
from qpeft.compare.report.format import MISSING
from qpeft.compare.resolved import read_study
from qpeft.compare.study_file import load_study
from qpeft.errors import ConfigError

SOURCE = "arXiv 0000.00000, table 2"
LORA = {"key": "lora", "method": "lora", "settings": {"r": 2}, "lr": 0.01}
SMALL = {"blocks": [], "generation": None, "training.steps": 6, "training.seq_len": 32, "seeds": [0, 1, 2]}


def publish(folder, key, *published):
    def change(study):
        next(method for method in study["methods"] if method["key"] == key)["published"] = list(published)

    edit_json(folder / "study.json", change)


def published(folder):
    with (folder / "published.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_plan_stores_published_values_and_hashes_without_them(tmp_path, tiny_model, text_file):
    def plan(name, **fields):
        changes = SMALL | {"base": str(tiny_model), "data": str(text_file), "methods": [LORA | fields]}
        return make_plan(load_study("survey", changes), tmp_path / name)

    one = {"value": 3.5, "metric": "test_ppl", "data": str(text_file), "source": SOURCE, "note": "second hand"}
    found = plan("a", published=[one, one | {"data": "other.txt"}])
    found.study.write(found.folder)
    (method,) = read_study(found.folder).methods
    assert [value.model_dump() for value in method.published] == [one]
    assert method.hash == plan("b").study.methods[0].hash


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({"value": 1.0}, "methods.0.published.0.source: Field required"),
        ({"value": "1 %", "source": SOURCE}, "methods.0.published.0.value"),
        ({"value": float("inf"), "source": SOURCE}, "finite number"),
        ({"value": 1.0, "source": "=cmd()"}, "methods.0.published.0.source"),
        ([{"value": 1.0, "source": SOURCE, "metric": "test_los"}], "unknown metric 'test_los'; did you mean"),
        ({"valeu": 1.0, "source": SOURCE}, "unknown field 'valeu'; did you mean 'value'"),
    ],
)  # fmt: skip
def test_invalid_published_value_is_refused_with_its_field(published, message):
    with pytest.raises(ConfigError, match=message):
        load_study("survey", {"methods": [LORA | {"published": published}], "blocks": []})


def test_tables_show_published_and_measured_values(study_folder):
    publish(
        study_folder,
        "qpa",
        {"value": 4.1, "source": SOURCE, "note": "second hand"},
        {"value": 16400, "metric": "trainable", "source": SOURCE},
        {"value": 20.5, "metric": "bleu", "source": "log <b> of | a run"},
    )
    write_tables_of(study_folder)
    mean = fmean(row["quality"]["test_loss"] for row in stored_rows(study_folder, "qpa", "seed*"))
    loss, count, bleu = published(study_folder)
    assert (loss["key"], loss["metric"], loss["unit"], loss["measured.n"]) == (
        "qpa",
        "test_loss",
        "nats per token",
        "5",
    )
    assert float(loss["difference"]) == pytest.approx(mean - 4.1, rel=1e-12)
    assert (loss["source"], loss["note"]) == (SOURCE, "second hand")
    assert (float(count["measured.mean"]), float(count["difference"])) == (16_382, -18)
    assert (bleu["published"], bleu["measured.mean"], bleu["difference"]) == ("20.5", "", "")
    text = (study_folder / "summary.md").read_text()
    line = f"| ● qpa | Test loss (nats per token) | 4.1 | {mean:.4f} ± "
    assert line in text
    assert f"| {mean - 4.1:+.4f} | {SOURCE} (second hand) |" in text
    assert f"| ● qpa | Trainable parameters | 16,400 | 16,382 | -18 | {SOURCE} |" in text
    assert rf"| 20.5 | {MISSING} | {MISSING} | log \<b> of \| a run |" in text


def test_published_accuracy_is_a_percentage(study_folder):
    def classify(study):
        study.update({"metric": "test_accuracy", "task": "text-classification"})

    edit_json(study_folder / "study.json", classify)
    edit_rows(study_folder, lambda row: row["quality"].update({"test_accuracy": 0.9}), "qpa", "seed*")
    publish(study_folder, "qpa", {"value": 91.5, "source": SOURCE})
    (found,) = summary_of(study_folder)["qpa"].published
    assert (found.measured.mean, found.difference) == pytest.approx((90.0, -1.5))


def test_report_and_terminal_show_published_values(study_folder, qpeft_cli):
    publish(study_folder, "qpa", {"value": 4.125, "source": f"<script>{SOURCE}"})
    page = write_report_of(study_folder).read_text(encoding="utf-8")
    assert f"&lt;script&gt;{SOURCE}" in page
    assert "Published and measured" in page
    shown = qpeft_cli("compare", "report", study_folder, env={"COLUMNS": "160"}).stdout
    assert "4.125" in shown
    assert SOURCE in shown
    found = json.loads(qpeft_cli("compare", "report", study_folder, "--json").stdout)
    assert next(m for m in found["methods"] if m["key"] == "qpa")["published"][0]["value"] == 4.125


def test_study_without_published_values_has_no_such_table(study_folder):
    (study_folder / "published.csv").write_text("older")
    write_tables_of(study_folder)
    assert not (study_folder / "published.csv").exists()
    assert "ublished" not in (study_folder / "summary.md").read_text()
    assert "ublished" not in write_report_of(study_folder).read_text(encoding="utf-8")
