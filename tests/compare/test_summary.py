"""The summary of a study: verdicts, ranks, speeds, sentences, limits, and missing results."""

import json
from dataclasses import replace

import numpy as np
import pytest
from synthetic_study import drop_rows, edit_json, edit_rows, stored_rows, summary_of

from qpeft.compare.analysis import sentences
from qpeft.compare.analysis.sentences import headlines_of
from qpeft.compare.analysis.statistics import BETTER, NO_DIFFERENCE, PRELIMINARY, WORSE
from qpeft.compare.report import tables, text
from qpeft.errors import CheckpointError, InputError

SEEDS = [0, 1, 2, 3, 4]


def plant(folder, key, losses, metric="test_loss"):
    """Give a method's seeds these test losses."""
    values = iter(losses)
    edit_rows(folder, lambda row: row["quality"].update({metric: next(values)}), key, "seed*")
    assert next(values, None) is None


def test_methods_are_in_the_order_of_the_study(study_folder):
    summary = summary_of(study_folder)
    assert [method.key for method in summary.methods] == [m.key for m in summary.study.methods]
    assert summary["qpa"].trainable == 16_382
    assert summary["qpa"].deployed == 32_768
    assert summary["qpa"].generator == 16_382
    assert summary["lora"].generator is None
    assert summary["qpa"].bytes_stored == 4 * 16_382 + 512
    assert summary["qpa"].lr == 1e-3


def test_deployed_parameters_are_the_mean_of_the_seeds_or_planned(study_folder):
    left = iter((10, 20, 30, 40, 0))
    edit_rows(study_folder, lambda row: row["cost"].update({"params_deployed": next(left)}), "qpa", "seed*")
    assert summary_of(study_folder)["qpa"].deployed == 20
    drop_rows(study_folder)
    assert summary_of(study_folder)["qpa"].deployed == 32_768


def test_measurements_are_means_over_seeds(study_folder):
    values = [row["quality"]["test_ppl"] for row in stored_rows(study_folder, "qpa", "seed*")]
    found = summary_of(study_folder)["qpa"].measurements["quality.test_ppl"]
    assert found.mean == pytest.approx(np.mean(values), rel=1e-13)
    assert found.sd == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert list(found.values.values()) == values


def test_equal_methods_show_no_difference_and_share_a_rank(study_folder):
    summary = summary_of(study_folder)
    twin = summary["twin"].difference
    assert (twin.low, twin.high, twin.verdict_alone, twin.verdict) == (0, 0, NO_DIFFERENCE, NO_DIFFERENCE)
    assert summary["twin"].rank == summary["lora"].rank == 2
    assert summary.sentences["twin"].startswith("No difference from LoRA is shown: LoRA again ends exactly equal")


def test_sentences(study_folder):
    plant(study_folder, "lora", [4.0, 4.1, 4.2, 4.3, 4.4])
    plant(study_folder, "qpa", [4.042, 4.132, 4.242, 4.352, 4.442])
    plant(study_folder, "quantum_peft", [4.05, 4.05, 4.25, 4.25, 4.45])
    plant(study_folder, "twin", [loss - 3e-5 for loss in (4.0, 4.1, 4.2, 4.3, 4.4)])
    sentences = summary_of(study_folder).sentences
    assert sentences["lora"] == "LoRA, the reference, ends at 4.200 nats per token (s.d. 0.158 over 5 seeds)."
    assert sentences["qpa"] == (
        "QPA ends 0.042 nats per token above LoRA (95 % interval 0.033 to 0.051, 5 of 5 seeds worse) "
        "with half as many trainable parameters."
    )
    assert sentences["quantum_peft"] == (
        "No difference from LoRA is shown: Quantum-PEFT ends 0.010 nats per token above "
        "(95 % interval -0.058 to 0.078, 3 of 5 seeds worse) with 3.8 % as many trainable parameters. "
        "Its learning rate 0.01 is the highest of those tried: another may be better."
    )
    assert sentences["none"].startswith("The base, untrained ends 0.400 nats per token above LoRA")
    assert sentences["none"].endswith("without training.")
    assert sentences["full"].endswith("5 of 5 seeds better) with 43 times as many trainable parameters.")
    assert sentences["twin"].startswith("LoRA again ends 0.000030 nats per token below LoRA (95 % interval 0.00003")
    assert sentences["lora@qaa"].startswith("LoRA at QAA's count ends 0.150 nats per token below QAA (95 % in")
    assert sentences["prefix"].endswith(" Of its 5 seeds: 2 missing.")
    assert sentences["vera"].endswith(" Of its 5 seeds: 1 diverged.")


@pytest.mark.parametrize(
    ("losses", "named"),
    [
        ([3.5, 3.51, 3.52, 3.53, 3.54], "performs better than QPA"),
        ([4.0, 4.0, 4.0, 4.0, 4.0001], "is not shown to differ from QPA"),
        ([4.0, 4.02, 4.03, 4.04, 4.06], ""),  # worse, but not after Holm's correction
        ([4.5, 4.51, 4.52, 4.53, 4.54], ""),
        ([4.0, 4.0], ""),
    ],
)
def test_limits_name_controls_that_are_not_worse(study_folder, losses, named):
    plant(study_folder, "qpa", [4.0, 4.0, 4.0, 4.0, 4.0])
    drop_rows(study_folder, "qpa_noise", f"seed[{len(losses)}-9]")
    plant(study_folder, "qpa_noise", losses)
    start = "QPA with noise for its circuit "
    found = [limit for limit in summary_of(study_folder).limits if limit.startswith(start)]
    assert len(found) == bool(named)
    assert all(named in limit for limit in found)


def test_control_with_a_failed_seed_is_not_named(study_folder):
    edit_rows(study_folder, lambda row: row.update({"status": "diverged"}), "qpa_noise", "seed1")
    assert not any("shown to differ" in limit for limit in summary_of(study_folder).limits)


def test_results_without_the_reference(study_folder):
    drop_rows(study_folder, "lora", "seed*")
    summary = summary_of(study_folder)
    assert summary["qpa"].difference is None
    assert summary.sentences["qpa"].endswith("over 5 seeds); there is no result yet to compare it with.")
    assert summary["qpa"].rank == 3


def test_row_of_the_untrained_base_counts_for_every_seed(study_folder):
    found = summary_of(study_folder)["none"]
    assert found.statuses == dict.fromkeys(SEEDS, "success")
    assert (found.metric.values, found.metric.sd) == (dict.fromkeys(SEEDS, 4.6), 0.0)
    assert (found.difference.n, found.difference.verdict) == (5, WORSE)
    assert found.steps_to == {}


def test_one_seed_is_preliminary(study_folder):
    drop_rows(study_folder, "qpa", "seed[1-4]")
    summary = summary_of(study_folder)
    found = summary["qpa"]
    assert list(found.metric.values) == [0]
    assert (found.metric.sd, found.difference.low, found.difference.verdict) == (None, None, PRELIMINARY)
    assert (found.rank, found.ok) == (None, 1)
    assert "preliminary: 1 seed" in found.flags
    assert found.statuses == {0: "success", **dict.fromkeys([1, 2, 3, 4], "missing")}
    assert summary.sentences["qpa"].startswith("Preliminary, 1 seed only: QPA ends ")
    assert "Preliminary, with fewer than 3 seeds, and not ranked: QPA." in summary.limits


def test_failures_are_reported_and_not_ranked(study_folder):
    summary = summary_of(study_folder)
    assert summary["vera"].statuses[4] == "diverged"
    assert summary["ia3"].statuses[3] == "failed"
    assert list(summary["vera"].metric.values) == [0, 1, 2, 3]
    assert summary["vera"].rank is summary["ia3"].rank is summary["prefix"].rank is None
    assert [row.name for row in summary.failures] == ["lr0.01", "seed4", "seed3"]
    assert "1 diverged" in summary["vera"].flags
    assert "2 missing" in summary["prefix"].flags
    assert any("Seeds failed or diverged: VeRA; IA3." in limit for limit in summary.limits)
    assert any("2 of 75 runs are missing" in limit for limit in summary.limits)


def test_method_with_a_failed_seed_is_never_better(study_folder):
    edit_rows(study_folder, lambda row: row["quality"].update({"test_loss": 1.0 + row["seed"] / 1000}), "vera", "seed*")
    summary = summary_of(study_folder)
    found = summary["vera"].difference
    assert (found.verdict_alone, found.verdict) == (BETTER, NO_DIFFERENCE)
    assert "seeds of VeRA failed, so no verdict favors it" in summary.sentences["vera"]


def test_sentence_names_holms_correction_where_it_decides(study_folder):
    plant(study_folder, "lora", [4.0, 4.0, 4.0, 4.0, 4.0])
    plant(study_folder, "qpa", [4.0, 4.02, 4.03, 4.04, 4.06])
    summary = summary_of(study_folder)
    found = summary["qpa"].difference
    assert (found.verdict_alone, found.verdict) == (WORSE, NO_DIFFERENCE)
    assert f"but not after Holm's correction over {summary.n_comparisons} comparisons." in summary.sentences["qpa"]
    assert summary.n_comparisons == 11 + 2 + 3  # to LoRA; controls to their methods; the block's to QAA


def test_blocks_rank_only_members_near_the_budget(study_folder):
    (block,) = summary_of(study_folder).blocks
    found = {member.key: member for member in block.members}
    assert {key: member.rank for key, member in found.items()} == {
        "qaa": 2,
        "lora@qaa": 1,
        "quantum_peft@qaa": None,
        "bottleneck@qaa": None,
    }
    assert found["bottleneck@qaa"].over_budget
    assert found["qaa"].difference is None
    assert (found["lora@qaa"].difference.to, found["lora@qaa"].difference.verdict) == ("qaa", BETTER)
    assert found["lora@qaa"].ratio == 16_384 / 16_900


def test_ranks_follow_the_mean(study_folder):
    summary = summary_of(study_folder)
    ranked = sorted((m for m in summary.methods if m.rank is not None), key=lambda m: m.metric.mean)
    assert [m.key for m in ranked] == ["full", "lora", "twin", "qpa", "qaa", "quantum_peft", "none"]
    assert [m.rank for m in ranked] == [1, 2, 2, 4, 5, 6, 7]


def test_answer_names_methods_whose_learning_rate_is_at_an_edge(study_folder):
    summary = summary_of(study_folder)
    assert summary["quantum_peft"].lr_at_edge == "high"
    assert summary.sentences["quantum_peft"].endswith("is the highest of those tried: another may be better.")
    assert summary.headlines[-1].endswith("may be better for Quantum-PEFT.")
    assert summary["quantum_peft"].flags == []
    assert summary["qpa"].lr_at_edge is None
    assert "of those tried" not in summary.sentences["qpa"]


def test_trials_beyond_the_grid_count(study_folder):
    """A best that was at an edge of the grid is inside with one more trial, and its seeds are those of the study."""
    trial = stored_rows(study_folder, "quantum_peft", "lr0.01")[0]
    further = {**trial, "cell_id": trial["cell_id"].replace("lr0.01", "lr0.03333")}
    further |= {"train": {**trial["train"], "lr": 0.03333}, "quality": {**trial["quality"], "valid_loss": 9.0}}
    with (study_folder / "rows.jsonl").open("a") as file:
        file.write(json.dumps(further) + "\n")
    summary = summary_of(study_folder)
    assert summary["quantum_peft"].lr_at_edge is None
    assert [rate for rate, _ in summary.rows["quantum_peft"].trials] == [3e-4, 1e-3, 3e-3, 1e-2, 0.03333]
    assert summary.headlines[-1].startswith("QAA is better")


def test_limits_name_what_would_make_a_comparison_unfair(study_folder):
    edit_json(study_folder / "study.json", lambda study: study["data"].update(notes=["9 rows are shared."]))
    edit_json(study_folder / "study.json", lambda study: study["methods"][10].update(trainable=9))
    edit_rows(study_folder, lambda row: row["train"].update(lr=3e-4), "qaa", "seed3")
    limits = summary_of(study_folder).limits
    assert "9 rows are shared." in limits
    unequal = "QPA with noise for its circuit (0.0549 %)"
    assert any(limit.endswith(f"parameters than their method: {unequal}. This may matter.") for limit in limits)
    assert "Seeds were trained with different learning rates: QAA. Run the study again to finish it." in limits


def test_limits_name_controls_that_are_not_shown_to_differ(study_folder):
    limits, headlines = summary_of(study_folder).limits, summary_of(study_folder).headlines
    assert limits[0].startswith("All quantum circuits are simulated")
    assert limits[1].startswith("A prefix changes")
    assert limits[2].startswith("The defaults of QAA")
    assert headlines[-4].startswith("Of 2 controls, ")
    assert headlines[-3].startswith("QPA is not shown to be better than its control: QPA with noise for its circuit (")
    assert headlines[-2] == "QAA is better than its control, QAA with a random linear map."
    assert any(
        limit.startswith("QPA with noise for its circuit is not shown to differ from QPA here (diff")
        for limit in limits
    )
    assert not any(limit.startswith("QAA with a random linear map ") for limit in limits)


def test_headlines_answer_first_what_most_methods_are_for(study_folder):
    lora = [4.0, 4.1, 4.2, 4.3, 4.4]
    plant(study_folder, "lora", lora)
    plant(study_folder, "full", [loss - 0.5 + 0.001 * i for i, loss in enumerate(lora)])
    plant(study_folder, "twin", lora)
    plant(study_folder, "qpa", [4.042, 4.132, 4.242, 4.352, 4.442])
    drop_rows(study_folder, "prefix", "seed[1-4]")
    edit_rows(study_folder, lambda row: row["quality"].update(test_loss=4.5), "prefix", "seed0")
    for key in ("quantum_peft", "vera", "ia3"):
        drop_rows(study_folder, key, "seed*")
    edit_rows(study_folder, lambda row: row["quality"].update(test_loss=4.8 + row["seed"] / 9), "qaa", "seed*")
    compared, in_block, controls, *_ = summary_of(study_folder).headlines
    assert compared == (
        "Full fine-tuning (3.702) is better than LoRA (4.200 nats per token); "
        "LoRA again (4.200) is not shown to differ; QPA (4.242) and QAA (5.022) are worse; "
        "prefix tuning (4.500) is without a verdict with fewer than 3 seeds."
    )
    assert in_block.startswith("With 80 to 100 % of the 16,900 trainable parameters of QAA: LoRA at QAA's count (4.0")
    assert in_block.endswith(") is better than QAA (5.022 nats per token).")
    assert controls == "Of 2 controls, 0 are worse than their methods, 1 better, and for 1 no difference is shown."

    def become_controls(study):
        for method in study["methods"]:
            if method["key"] in ("full", "twin", "prefix", "quantum_peft", "vera", "ia3"):
                method.update(role="control", against="qpa")

    edit_json(study_folder / "study.json", become_controls)
    number, of_qpa, _, compared, in_block = summary_of(study_folder).headlines
    assert number.startswith("Of 4 controls, ")
    assert of_qpa.startswith("QPA is not shown to be better than ")
    assert compared.startswith("QPA (4.242) and QAA (5.022) are worse than LoRA")
    assert in_block.startswith("With 80 to 100 % of the 16,900 trainable parameters of QAA: ")

    def become_reference(study):
        others = [method for method in study["methods"] if method["against"] != "qaa"]
        study.update(reference="qaa", methods=others)

    edit_json(study_folder / "study.json", become_reference)
    in_block, *_ = summary_of(study_folder).headlines
    assert in_block.startswith("With 80 to 100 % of the 16,900 trainable parameters of QAA: ")


def test_of_many_methods_with_one_verdict_the_first_are_named(study_folder, monkeypatch):
    plant(study_folder, "lora", [4.0, 4.1, 4.2, 4.3, 4.4])
    for number, key in enumerate(("full", "qpa", "qaa", "ia3")):
        plant(study_folder, key, [4.5 + 0.1 * number + 0.101 * seed for seed in range(5)])
    for key in ("prefix", "quantum_peft", "vera", "twin"):
        drop_rows(study_folder, key, "seed*")
    monkeypatch.setattr(sentences, "_MOST_NAMED", 3)
    monkeypatch.setattr(sentences, "_FIRST_NAMED", 2)
    compared, *_ = summary_of(study_folder).headlines
    first = "(4.702), QPA (4.802) and 2 others are worse than LoRA (4.200 nats per token)."
    assert compared == f"Full fine-tuning {first}"

    def add_comma(study):
        [full] = [method for method in study["methods"] if method["key"] == "full"]
        full.update(label="fine-tuning, all weights")

    edit_json(study_folder / "study.json", add_comma)
    compared, *_ = summary_of(study_folder).headlines
    assert compared == f'"fine-tuning, all weights" {first}'


def test_sizes_of_the_reference_are_compared_in_the_first_headline(study_folder):
    edit_json(study_folder / "study.json", lambda study: study.update(reference="qaa"))
    summary = summary_of(study_folder)
    (block,) = summary.blocks
    second = replace(block, budget=17_000)
    first, *_ = headlines_of(replace(summary, blocks=[block, second]))
    assert first.count("With 80 to 100 % of the ") == 2
    assert first.index("of the 16,900 trainable") < first.index("of the 17,000 trainable")


def test_scores_of_generated_texts_have_a_headline(study_folder):
    assert not any("BLEU" in headline for headline in summary_of(study_folder).headlines)
    for key, bleu in {"lora": 30.0, "qpa": 20.0, "qaa": 25.04}.items():
        edit_rows(study_folder, lambda row, bleu=bleu: row["quality"].update(bleu=bleu + row["seed"] - 2), key, "seed*")
    expected = "BLEU of the generated texts: LoRA 30.0, QAA 25.0, QPA 20.0."
    assert summary_of(study_folder).headlines[1] == expected
    edit_json(study_folder / "study.json", lambda study: study.update(metric="bleu"))
    assert expected not in summary_of(study_folder).headlines  # the first headline has them


def test_limits_report_unequal_batches(study_folder):
    assert not any("same batches" in limit for limit in summary_of(study_folder).limits)
    edit_rows(study_folder, lambda row: row["data"].update({"order_sha256": "another"}), "qpa", "seed1")
    assert any("did not see the same batches with seed 1" in limit for limit in summary_of(study_folder).limits)


def test_method_worse_than_the_untrained_base_is_flagged(study_folder):
    flag = "worse than the untrained base with every seed"
    assert all(flag not in method.flags for method in summary_of(study_folder).methods)
    plant(study_folder, "qpa", [9.0, 9.1, 9.2, 9.1, 9.0])
    assert flag in summary_of(study_folder)["qpa"].flags


@pytest.mark.parametrize(
    ("best_steps", "flag"), [([0] * 5, "did not improve on the base"), ([0, 60, 60, 0, 60], "2 of 5")]
)
def test_method_without_improvement_is_flagged(study_folder, best_steps, flag):
    values = iter(best_steps)
    edit_rows(study_folder, lambda row: row["quality"].update({"best_step": next(values)}), "qpa", "seed*")
    summary = summary_of(study_folder)
    assert any(flag in text for text in summary["qpa"].flags)
    is_total = not any(best_steps)
    assert ("It did not improve on the base" in summary.sentences["qpa"]) is is_total
    assert any("not improve on the base" in limit for limit in summary.limits) is is_total
    shown = {row[0]: row for row in tables.results(summary).rows}
    assert any("(not improved)" in cell for cell in shown["● qpa"]) is is_total
    assert not any("not improve" in text for key in ("none", "lora", "full") for text in summary[key].flags)


@pytest.mark.parametrize(("ratios", "noise"), [((1.02, 0.97), 0.031), ((1.0, 1.71), 0.71), ((0.8, 1.0), 0.25)])
def test_noise_of_times_is_reported(study_folder, ratios, noise):
    assert summary_of(study_folder).cost_noise is None
    found = dict(zip(("step_twin_ratio", "infer_twin_ratio"), ratios, strict=True))
    edit_rows(study_folder, lambda row: row["cost"].update(found), "qpa", "cost")
    summary = summary_of(study_folder)
    assert summary.cost_noise == pytest.approx(noise, abs=1e-3)
    assert any("Times are unreliable" in limit for limit in summary.limits) is (noise > 0.1)
    assert f"differ by {'up to' if noise > 0.1 else 'at most'} {noise:.0%}" in text.costs(summary)
    assert "Noise (%)" in tables.costs(summary).columns


def test_limits_report_unknown_tokens(study_folder):
    edit_rows(study_folder, lambda row: row["data"].update(splits={"test_tokens": 200, "test_unknown_tokens": 94}))
    assert any(
        limit.startswith("47.0% of the scored test tokens are unknown") for limit in summary_of(study_folder).limits
    )


def test_rows_of_an_older_config_are_ignored(study_folder):
    before = summary_of(study_folder)
    older = stored_rows(study_folder, "qpa")
    for row in older:
        row["cell_id"] = row["cell_id"].replace(row["method_config"]["hash"], "an-older-hash")
        row["method_config"]["hash"] = "an-older-hash"
        row["quality"]["test_loss"] = 0.0
    with (study_folder / "rows.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in older)
    assert summary_of(study_folder) == before


def plant_curve(folder, key, losses, seed="*"):
    """Validation losses at step 0, 50, 100 and 150."""
    curve = [[50 * i, None, loss, 2.5 * i] for i, loss in enumerate(losses)]
    edit_rows(folder, lambda row: row["train"].update({"curve": curve}), key, f"seed{seed}")


def test_steps_to_shares_of_the_references_gain(study_folder):
    plant_curve(study_folder, "lora", [4.6, 4.3, 4.1, 4.0])  # a gain of 0.6
    plant_curve(study_folder, "full", [4.6, 4.1, 3.8, 3.6])
    plant_curve(study_folder, "qpa", [4.6, 4.5, 4.29, 4.1])
    plant_curve(study_folder, "qpa", [4.6, 4.5, 4.4, 4.4], seed=4)
    plant_curve(study_folder, "qaa", [4.6, 4.5, 4.4, 4.1])
    plant_curve(study_folder, "qaa", [4.6, 4.5, 4.4, 4.4], seed="[0-2]")
    summary = summary_of(study_folder)
    assert summary.targets == pytest.approx({50: 4.3, 80: 4.12, 95: 4.03})
    assert [summary["lora"].steps_to[share].median for share in (50, 80, 95)] == [50, 100, 150]
    assert [summary["full"].steps_to[share].median for share in (50, 80, 95)] == [50, 50, 100]
    assert summary["full"].seconds_to[95].median == 5.0
    qpa = summary["qpa"].steps_to
    assert qpa[50].values == {**dict.fromkeys(SEEDS[:4], 100.0), 4: None}
    assert (qpa[50].median, qpa[50].n_reached, qpa[50].limit) == (100, 4, 150)
    assert (qpa[95].median, qpa[95].n_reached) == (None, 0)
    qaa = summary["qaa"].steps_to[50]  # reached by two of five seeds: the median is later than the end
    assert (qaa.median, qaa.n_reached) == (None, 2)
    shown = {row[0]: row for row in tables.speed(summary).rows}
    assert shown["● qpa"][1:4] == ["100 (4/5)", "150 (4/5)", "> 150"]
    assert shown["● qaa"][1] == "> 150 (2/5)"


def test_median_of_an_even_number_of_seeds(study_folder):
    plant_curve(study_folder, "lora", [4.6, 4.3, 4.1, 4.0])
    drop_rows(study_folder, "qpa", "seed4")
    plant_curve(study_folder, "qpa", [4.6, 4.3, 4.3, 4.3], seed="[01]")
    plant_curve(study_folder, "qpa", [4.6, 4.5, 4.3, 4.3], seed=2)
    plant_curve(study_folder, "qpa", [4.6, 4.5, 4.5, 4.5], seed=3)
    assert summary_of(study_folder)["qpa"].steps_to[50].median == 75  # of 50, 50, 100 and never
    plant_curve(study_folder, "qpa", [4.6, 4.5, 4.5, 4.5], seed=2)
    assert summary_of(study_folder)["qpa"].steps_to[50].median is None


def test_failed_seed_counts_as_one_that_did_not_reach_a_target(study_folder):
    found = summary_of(study_folder)["vera"].steps_to[50]
    assert (found.values[4], found.n_reached) == (None, 4)


def test_reference_without_a_gain_gives_no_targets(study_folder):
    plant_curve(study_folder, "lora", [4.6, 4.3, 4.5, 4.6])
    summary = summary_of(study_folder)
    assert summary.targets == summary["qpa"].steps_to == {}
    assert not any(title.startswith(("Steps", "Seconds")) for title in tables.speed(summary).columns)
    drop_rows(study_folder, "lora", "seed*")
    assert summary_of(study_folder).targets == {}


def test_times_on_different_hardware_have_no_mean(study_folder):
    assert "train.seconds" in summary_of(study_folder)["qpa"].measurements
    edit_rows(study_folder, lambda row: row["env"].update({"device": "another"}), "qpa", "seed0")
    edit_rows(study_folder, lambda row: row["env"].update({"threads": 8}), "qaa", "cost")
    summary = summary_of(study_folder)
    assert "train.seconds" not in summary["qpa"].measurements
    assert summary["qpa"].seconds_to == {}
    assert summary["qpa"].null_reasons["train.seconds"] == "the seeds ran on different hardware"
    assert "quality.test_loss" in summary["qpa"].measurements
    assert summary["qpa"].steps_to
    assert any("cpu x86_64, 1 thread; cpu x86_64, 8 threads" in limit for limit in summary.limits)


def test_accuracy_is_better_when_higher(study_folder):
    edit_json(
        study_folder / "study.json",
        lambda study: study.update({"metric": "test_accuracy", "task": "text-classification"}),
    )
    accuracies = [0.801, 0.812, 0.793, 0.804, 0.806]
    edit_rows(study_folder, lambda row: row["quality"].update({"test_accuracy": accuracies[row["seed"]]}), name="seed*")
    plant(study_folder, "qpa", [value + 0.05 + i / 1e4 for i, value in enumerate(accuracies)], "test_accuracy")
    plant(study_folder, "full", [value + 0.1 + i / 1e4 for i, value in enumerate(accuracies)], "test_accuracy")
    summary = summary_of(study_folder)
    assert (summary["qpa"].difference.verdict, summary["full"].rank, summary["qpa"].rank) == (BETTER, 1, 2)
    assert summary.sentences["full"].startswith(
        "Full fine-tuning ends 10.0 percentage points above LoRA (95 % interval 10.0 to"
    )
    assert summary.sentences["lora"] == "LoRA, the reference, ends at 80.3 % (s.d. 0.7 over 5 seeds)."


def test_method_without_a_successful_trial_is_flagged(study_folder):
    edit_rows(study_folder, lambda row: row.update({"status": "diverged"}), "qaa", "lr*")
    assert "no learning rate succeeded" in summary_of(study_folder)["qaa"].flags


def test_reasons_for_missing_measurements(study_folder):
    drop_rows(study_folder, "qaa", "cost")
    edit_rows(study_folder, lambda row: row.update({"status": "oom", "error_msg": "too large"}), "qpa", "cost")
    summary = summary_of(study_folder)
    assert summary["qaa"].null_reasons["cost"] == "not measured yet"
    assert summary["qpa"].null_reasons["cost"] == "oom: too large"
    assert summary["none"].null_reasons["capacity"] == "nothing is adapted"
    assert summary["lora"].null_reasons["quality.bleu"] == "the task has no references"


def test_folder_without_a_study_raises_input_error(tmp_path):
    with pytest.raises(InputError, match=r"holds no study \(study\.json is missing\)"):
        summary_of(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is damaged"), ("[]", "is damaged"), ('{"schema": 9}', "schema 9")]
)
def test_damaged_study_raises_checkpoint_error(tmp_path, text, message):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        summary_of(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda study: study.update(reference="zzz"), "reference: no method has the key 'zzz'"),
        (lambda study: study["methods"][10].update(against="zzz"), "is a control against 'zzz'"),
        (lambda study: study["blocks"][0].update(of="zzz"), "blocks.of: no method has the key 'zzz'"),
        (lambda study: study["blocks"][0]["members"][1].update(key="zzz"), "not one method with the key 'zzz'"),
        (lambda study: study["methods"].append(study["methods"][2]), "not one method with the key 'lora'"),
        (lambda study: study["methods"][1].update(key="x/../../y"), r"methods.1.key: String should match pattern"),
        (lambda study: study.update(metric="zzz"), "metric: unknown metric 'zzz'; choose one of test_loss"),
        (lambda study: study.update(seeds=[]), "seeds: List should have at least 1 item"),
        (lambda study: study["blocks"][0].update(budget=0), "blocks.0.budget: Input should be greater than 0"),
        (lambda study: study.update(methods=["lora"]), "methods.0: Input should be"),
    ],
)
def test_edited_study_is_refused_with_the_field(study_folder, change, message):
    edit_json(study_folder / "study.json", change)
    with pytest.raises(CheckpointError, match=message):
        summary_of(study_folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row["base"].update(sha256="of other weights"),
        lambda row: row["data"].update(sha256="of other data"),
        lambda row: row["method_config"]["settings"].update(r=9),
        lambda row: row.update(seed=9),
        lambda row: row["train"].update(lr=0.123),
    ],
    ids=["weights", "data", "settings", "seed", "learning rate"],
)
def test_row_of_other_work_counts_as_missing(study_folder, change):
    edit_rows(study_folder, change, "lora", "seed1")
    assert summary_of(study_folder)["lora"].statuses[1] == "missing"


@pytest.mark.parametrize("value", [1e308, 10**400])
def test_huge_value_of_a_row_is_no_measurement(study_folder, value):
    edit_rows(study_folder, lambda row: row["quality"].update(test_loss=value), "lora", "seed1")
    found = summary_of(study_folder)["lora"]
    assert (found.metric.n, found.null_reasons["quality.test_loss"]) == (4, "beyond 1e+100")
