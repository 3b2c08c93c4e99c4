"""The summary of a study: verdicts, ranks, speeds, sentences, limits, and missing results."""

import numpy as np
import pytest
from published_study import drop_rows, edit_rows, edit_study, score_classes, stored_rows

from qpeft.errors import CheckpointError, InputError
from qpeft_lab.compare.report import results
from qpeft_lab.compare.stats import BETTER, NO_DIFFERENCE, PRELIMINARY, WORSE
from qpeft_lab.compare.summary import _answers, load, publish

SEEDS = [0, 1, 2, 3, 4]


def plant(folder, key, losses, metric="test_loss"):
    """Give a method's seeds these test losses."""
    values = iter(losses)
    edit_rows(folder, lambda row: row.update({metric: next(values)}), key, "seed*")
    assert next(values, None) is None


def test_measurements_are_means_over_seeds(study_folder):
    summary = load(study_folder)
    values = [row["test_ppl"] for row in stored_rows(study_folder, "qpa", "seed*")]
    found = summary["qpa"].stats("test_ppl")

    assert found.mean == pytest.approx(np.mean(values), rel=1e-13)
    assert found.sd == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert summary["qpa"].mean("step_ms") == stored_rows(study_folder, "qpa", "cost")[0]["step_ms"]
    assert summary["lora"].mean("params_generator") is None


def test_times_relative_to_another_reference_are_not_shown(study_folder):
    """Until they are measured again."""
    hashes = {method.key: method.hash for method in load(study_folder).study.methods}
    edit_rows(study_folder, lambda row: row.update(reference=hashes["lora"]), "qpa", "cost")
    assert load(study_folder)["qpa"].mean("step_ratio") is not None

    edit_study(study_folder, lambda study, _: study.update(reference="dora"))
    assert load(study_folder)["qpa"].mean("step_ratio") is None


def test_answers_say_first_what_most_methods_are_for(study_folder):
    lora = [4.0, 4.1, 4.2, 4.3, 4.4]
    plant(study_folder, "lora", lora)
    plant(study_folder, "full", [loss - 0.5 + 0.001 * i for i, loss in enumerate(lora)])
    plant(study_folder, "dora", lora)
    plant(study_folder, "qpa", [4.042, 4.132, 4.242, 4.352, 4.442])
    drop_rows(study_folder, "prefix", "seed[1-4]")
    others = ("bottleneck", "prefix_mlp", "quantum_peft", "sora")
    for key in others:
        drop_rows(study_folder, key, "seed*")
    plant(study_folder, "qaa", [4.8, 4.92, 5.03, 5.14, 5.24])
    edit_study(study_folder, lambda _, methods: methods["qpa"].update(label="QPA"))
    compared, at_size, controls = load(study_folder).answers

    assert (
        compared
        == "Full fine-tuning is better than LoRA r=8; DoRA r=8 is not shown to differ; QPA and QAA"
        " are worse; prefix tuning is without a verdict, with fewer than 3 seeds to compare."
    )
    assert at_size.startswith("At the size of QAA: ")
    assert controls == "QAA's offset alone is better than QAA."

    def become_controls(_, methods):
        for key in ("full", "dora", "prefix", *others):
            methods[key].update(against="qpa")

    edit_study(study_folder, become_controls)
    answers = load(study_folder).answers

    assert "QAA's offset alone" in answers[0]
    assert answers[1] == "QPA and QAA are worse than LoRA r=8."


def test_row_of_the_untrained_base_counts_for_every_seed(study_folder):
    found = load(study_folder)["none"]
    [row] = stored_rows(study_folder, "none")
    assert found.metric.values == dict.fromkeys(SEEDS, row["test_loss"])
    assert found.metric.sd == 0.0
    assert found.difference.n == 5
    assert found.difference.verdict == WORSE


def test_one_seed_is_preliminary(study_folder):
    drop_rows(study_folder, "qpa", "seed[1-4]")
    summary = load(study_folder)
    found = summary["qpa"]

    assert found.metric.sd is None
    assert found.difference.low is None
    assert found.difference.verdict == PRELIMINARY
    assert len(found.successes) == 1
    assert found.lost == "4 missing"


def test_failures_are_reported_and_favored_by_no_verdict(study_folder):
    edit_rows(
        study_folder, lambda row: row.update(test_loss=1.0 + row["seed"] / 1000), "sora", "seed*"
    )
    summary = load(study_folder)
    assert summary["sora"].statuses[4] == "diverged"
    assert summary["prefix_mlp"].statuses[3] == "failed"
    assert list(summary["sora"].metric.values) == [0, 1, 2, 3]
    assert [row["name"] for row in summary.failures] == ["seed3", "seed4", "lr0.005"]

    difference = summary["sora"].difference  # the other seeds are a favorable selection
    assert difference.high < 0
    assert difference.verdict == NO_DIFFERENCE

    limits = "\n".join(summary.limits)
    assert "or lack the metric: prefix tuning through an MLP; SoRA r=8." in limits

    # also a correlation of equal predictions
    edit_rows(study_folder, lambda row: row.update(test_loss=None), "bottleneck", "seed2")
    assert load(study_folder)["bottleneck"].has_failures
    assert load(study_folder)["bottleneck"].lost == "1 without the metric"
    assert "1 without the metric" in set(results(load(study_folder)).frame["Remarks"])
    assert "2 of 120 runs are missing" in limits


def test_holms_correction_covers_every_comparison_of_the_study(study_folder):
    plant(study_folder, "lora", [4.0, 4.0, 4.0, 4.0, 4.0])
    plant(study_folder, "qpa", [4.0, 4.02, 4.03, 4.04, 4.06])
    summary = load(study_folder)
    difference = summary["qpa"].difference

    assert difference.low > 0
    assert difference.verdict == NO_DIFFERENCE
    assert summary.n_comparisons == 23  # every method but the reference has one


def test_answer_of_a_size_names_only_methods_near_it(study_folder):
    summary = load(study_folder)
    [answer] = [answer for answer in summary.answers if answer.startswith("At the size of QAA")]
    named = {
        found.key
        for found in summary.results
        if found.method.at_size_of == "qaa" and found.label in answer
    }

    assert named == {
        "bottleneck@qaa",
        "quantum_peft@qaa",
        "qpa@qaa",
        "prefix@qaa",
    }  # LoRA has 163 %
    assert summary.ratio(summary["lora@qaa"]) == 5780 / 3540
    assert summary["bottleneck@qaa"].difference.to == "qaa"
    assert summary["bottleneck@qaa"].difference.verdict == BETTER


def test_controls_far_from_the_size_that_they_shall_have_are_not_in_the_answer(study_folder):
    summary = load(study_folder)
    for key in ("lora@qaa", "qpa@qaa"):
        object.__setattr__(summary[key].method, "against", "qaa")
    [answer] = [each for each in _answers(summary) if not each.startswith("At the size")][-1:]
    assert summary["qpa@qaa"].label in answer
    assert summary["lora@qaa"].label not in answer


def test_limits_name_what_would_make_a_comparison_unfair(study_folder):
    def change(study, methods):
        study.update(data_notes=["9 rows are shared."])
        methods["bias_only"].update(trainable=9)

    edit_study(study_folder, change)
    edit_rows(study_folder, lambda row: row.update(lr=3e-4), "qaa", "seed3")
    edit_rows(study_folder, lambda row: row.update(left_out=["3 rows are empty"]), "qpa", "seed2")
    edit_rows(study_folder, lambda row: row.update(noise=0.5), "qpa", "cost")
    edit_rows(study_folder, lambda row: row.update(best_step=0), "dora", "seed*")
    summary = load(study_folder)

    assert summary["qpa"].lr_at_edge == "low"
    assert summary["lora"].lr_at_edge is None

    limits = "\n".join(summary.limits)
    for expected in (
        "All quantum circuits are simulated",
        "9 rows are shared.",
        "3 rows are empty.",
        "than their method: QAA's offset alone.",
        "differ by up to 50%",
        "runs are missing: the study is not finished.",  # one has another rate than the chosen one
        "may be better for: QPA over LoRA r=8, half its parameters.",
        "those before training: DoRA r=8.",
    ):
        assert expected in limits


def test_accuracy_is_better_when_higher(study_folder):
    edit_study(study_folder, score_classes)
    accuracies = [0.801, 0.812, 0.793, 0.804, 0.806]
    edit_rows(
        study_folder, lambda row: row.update(test_accuracy=accuracies[row["seed"]]), name="seed*"
    )
    plant(
        study_folder,
        "qpa",
        [value + 0.05 + i / 1e4 for i, value in enumerate(accuracies)],
        "test_accuracy",
    )
    plant(
        study_folder,
        "full",
        [value + 0.1 + i / 1e4 for i, value in enumerate(accuracies)],
        "test_accuracy",
    )
    summary = load(study_folder)

    assert [f.key for f in summary.by_quality[:2]] == ["full", "qpa"]
    assert summary["qpa"].difference.verdict == BETTER


def test_row_of_other_work_counts_as_missing(study_folder):
    edit_rows(study_folder, lambda row: row.update(hash="other"), "lora", "seed1")
    assert load(study_folder)["lora"].statuses[1] == "missing"


def test_published_results_are_those_of_the_folder(study_folder, tmp_path):
    file = tmp_path / "results" / "survey.jsonl.xz"
    publish(study_folder, file)
    summary = load(study_folder)
    published = load(file)

    assert published.study == summary.study
    assert [found.metric for found in published.results] == [
        found.metric for found in summary.results
    ]
    assert "traceback" not in next(row for row in published.rows if row["status"] == "failed")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda study, _: study.update(reference="zzz"), "reference: no method has the key 'zzz'"),
        (
            lambda _, methods: methods["qaa"].update(against="zzz"),
            "is against: no method has the key 'zzz'",
        ),
        (
            lambda _, methods: methods["qaa"].update(at_size_of="zzz"),
            "is at_size_of: no method has the key 'zzz'",
        ),
        (
            lambda _, methods: methods["full"].update(key="x/../../y"),
            r"methods.1.key: String should match pattern",
        ),
        (lambda study, _: study.update(methods=["lora"]), "methods.0: Input should be"),
        (lambda study, _: study.clear(), "name: Field required"),
    ],
)
def test_damaged_study_is_refused_with_the_field(study_folder, change, message):
    edit_study(study_folder, change)
    with pytest.raises(CheckpointError, match=message):
        load(study_folder)
    with pytest.raises(InputError, match=r"holds no study \(study\.json is missing\)"):
        load(study_folder / "data")
    with pytest.raises(InputError, match="no file of results"):
        load(study_folder / "study.json")
