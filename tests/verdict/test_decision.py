"""A verdict's statistics against scipy's tests, planted effects, and tampering with its file."""

import json
import lzma
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from folders import edit_json
from published_study import FILE as SURVEY
from published_study import drop_rows, edit_rows, edit_study
from scipy.stats import t as student
from scipy.stats import ttest_1samp
from snippets import ROOT

from qpeft.errors import (
    CheckpointError,
    ConfigError,
    InputError,
    TrainingError,
    VerificationError,
)
from qpeft.files import read_json, write_json
from qpeft_lab.compare.cell import started_row
from qpeft_lab.compare.paired import Paired
from qpeft_lab.compare.rows import RowFile
from qpeft_lab.compare.summary import load, publish
from qpeft_lab.verdict import PROTOCOL
from qpeft_lab.verdict.circuit import Circuit
from qpeft_lab.verdict.decision import check, comparisons, decide, sentence
from qpeft_lab.verdict.page import markdown, write
from qpeft_lab.verdict.planning import Request, Size, detectable, planned
from qpeft_lab.verdict.protocol import protocol_of
from verdict_power import rates

# one process makes the study of the fixture, which takes as long as all tests
pytestmark = pytest.mark.xdist_group("verdict")

LABELS = {"frozen": "frozen angles", "gaussian": "Gaussian features"}


def table(mean, spread, n_seeds=6, n_blocks=4):
    """Differences (seeds, blocks) of this mean, equal in all blocks."""
    drawn = np.random.default_rng(0).normal(size=(n_seeds, 1))
    drawn = (drawn - drawn.mean()) / drawn.std(ddof=1)
    return mean + spread * drawn.repeat(n_blocks, axis=1)


def test_intervals_and_p_values_are_those_of_paired_t_tests():
    seeds = table(mean=1.5, spread=2.0)
    (found,) = comparisons({"frozen": seeds}, LABELS, margin=5.0)
    test = ttest_1samp(seeds[:, 0], 0.0)

    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found.p == pytest.approx(test.pvalue)

    below = ttest_1samp(seeds[:, 0], 5.0, alternative="less").pvalue
    above = ttest_1samp(seeds[:, 0], -5.0, alternative="greater").pvalue
    assert found.p_margin == pytest.approx(max(below, above))


@pytest.mark.parametrize(
    "mean, spread, decision",
    [
        (-10.0, 1.0, "better"),
        (10.0, 1.0, "worse"),
        (1.5, 0.5, "equivalent"),  # shown to differ, but within the margin
        (3.0, 9.0, "undecided"),
    ],
)
def test_decisions(mean, spread, decision):
    (found,) = comparisons({"frozen": table(mean, spread)}, LABELS, margin=5.0)
    assert found.decision == decision


def test_more_questions_need_smaller_p_values():
    one = table(mean=2.6, spread=2.4)
    unclear = table(mean=0.5, spread=9.0)
    (alone,) = comparisons({"a": one}, {"a": "a"}, margin=1.0)
    many = {"a": one, **{str(i): unclear for i in range(9)}}
    first = comparisons(many, {key: key for key in many}, margin=1.0)[0]

    assert alone.decision == "worse"
    assert first.decision == "undecided"


def test_detectable_difference_is_detected_as_often_as_it_says():
    n_seeds = 5
    spread = 1.4
    expected = Paired(0.0, spread / np.sqrt(n_seeds), n_seeds - 1)
    smallest = expected.detectable(n_questions=1)
    drawn = np.random.default_rng(0).normal(smallest, spread, size=(4000, n_seeds))
    errors = drawn.std(axis=1, ddof=1) / np.sqrt(n_seeds)
    is_seen = np.abs(drawn.mean(1)) / errors > student.ppf(0.975, n_seeds - 1)

    assert is_seen.mean() == pytest.approx(0.8, abs=0.05)


def test_planted_effects_are_found_in_resampled_runs():
    """Right in 18 of 20 repetitions, for a control that is truly worse, and for an equal one."""
    right = rates(repetitions=20)
    assert set(right) == {"better", "equivalent"}
    assert min(right.values()) >= 18

    page = (ROOT / "docs" / "verdict.md").read_text(encoding="utf-8")
    more = rates(repetitions=200)
    assert more["better"] == 200
    assert f"equivalent in {more['equivalent']}" in page


def test_sentence_says_what_is_shown():
    def said(*means, spread=1.0):
        tables = {key: table(mean, spread) for key, mean in zip(LABELS, means, strict=True)}
        return sentence(comparisons(tables, LABELS, margin=5.0), margin=5.0)

    assert said(-10, -10).endswith("the study shows a benefit from the circuit.")
    assert "was better than the one with frozen angles, and was equivalent to" in said(-10, 0)
    assert "could detect a difference above" in said(0, 0)
    assert "frozen angles or the one with Gaussian features. The study cannot decide" in said(
        0, 0, spread=20
    )


def request_of(n_layers):
    run = {"model": "embedded", "data": "numpy-docs", "batch_size": 2, "seq_len": 16, "steps": 4}
    circuit = Circuit("ladder", "ry_ladder")
    return Request(circuit, "qpa", n_layers, run, margin=5.0, n_seeds=4, workers=1)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a planted study of a circuit of three qubits, better than frozen angles."""
    folder = tmp_path_factory.mktemp("study") / "verdict"
    request = request_of(n_layers=1)
    found = planned(request, folder, minutes=1e6, command="qpeft verdict ladder")
    found.protocol.keep(folder)
    found.plan.claim()
    rows = RowFile(folder)
    losses = {"none": 5.0, "lora_r8": 4.0, "circuit": 4.2, "frozen": 4.5, "gaussian": 4.201}
    draw = np.random.default_rng(0)
    for phase in (found.plan.tuning_cells, found.plan.final_cells):
        for cell in phase(rows.rows):
            noise = 0.002 * draw.normal(size=8)
            blocks = losses.get(cell.method, 4.3) + noise
            off = 0.0 if cell.lr is None else abs(math.log(cell.lr / cell.spec.lr))
            loss = float(blocks.mean()) + off  # the middle rate is the best
            row = started_row(cell) | {"status": "success", "valid_loss": loss, "best_step": 4}
            row |= {"curve": [[0, 5.0, 0.0], [4, loss, 1.0]]}
            if cell.role != "tuning":
                row |= {"test_loss": float(blocks.mean()), "test_losses": blocks.tolist()}
                row |= {"angles_moved": 0.5, "angles_moved_most": 1.0}
            rows.append(row)
    return folder


@pytest.fixture
def diverged(study, tmp_path):
    """A copy of the study with four seeds, of which those of some adapters diverged."""

    def make(**seeds):
        folder = shutil.copytree(study, tmp_path / "verdict")
        for key, lost in seeds.items():
            edit_rows(folder, lambda row: row.update(status="diverged"), key, f"seed[{lost}]")
        return folder

    return make


def test_diverged_seed_is_named_and_no_decision_favors_its_adapter(diverged):
    verdict = decide(diverged(circuit="2"))
    decisions = {each.against: (each.decision, each.n_seeds) for each in verdict.comparisons}
    assert decisions == dict.fromkeys(decisions, ("undecided", 3))
    assert not verdict.shown
    assert "Seed 2 of ladder diverged: 3 of 4 seeds count, and no decision favors it." in (
        verdict.sentence
    )


@pytest.mark.parametrize(
    "name, changes, told",
    [
        ("lr*", {"settings": {"r": 1}}, "settings of the row .*/frozen/.* was edited"),
        ("seed1", {"lr": 9.0}, r"lr of the row .*/frozen/.*/seed1 .* is 9\.0"),
        ("seed1", {"params_trainable": 1}, "params_trainable of the row .*/seed1"),
        ("seed1", {"test_losses": [4.0]}, "have 1 or 8 test_losses"),
    ],
)
def test_edited_row_is_named(diverged, name, changes, told):
    edit_rows(folder := diverged(), lambda row: row.update(changes), "frozen", name)
    with pytest.raises(VerificationError, match=told):
        decide(folder)


def change_json(path, change):
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(map(change, lines)) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    "field, value",
    [
        ("seed", 7),
        ("role", "method"),
        ("adapter", "lora"),
        ("test_loss", 1.0),
        ("test_losses", None),
        ("angles_moved", 0.0),
        ("best_step", 3),
        ("name", "seed9"),
        ("status", "diverged"),
        (None, None),  # without its seal
    ],
)
@pytest.mark.parametrize("is_kept", [False, True])
def test_edited_row_is_refused(study, tmp_path, is_kept, field, value):
    folder = shutil.copytree(study, tmp_path / "verdict")

    def edit(line):
        row = json.loads(line)
        is_meant = row.get("method") == "circuit" and row["name"] == "seed1"
        if is_meant and field is None:
            del row["seal"]
        return json.dumps(row | ({field: value} if field else {})) if is_meant else line

    if not is_kept:
        change_json(folder / "rows.jsonl", edit)
        with pytest.raises(
            CheckpointError, match=r"rows\.jsonl is damaged in line \d+ \(.*/circuit/.*edited"
        ):
            decide(folder)
        return
    publish(folder, kept := tmp_path / "kept.jsonl.xz")
    load(kept)
    lines = lzma.decompress(kept.read_bytes()).decode().splitlines()
    kept.write_bytes(lzma.compress("\n".join(map(edit, lines)).encode()))
    with pytest.raises(InputError, match=r"/circuit/.*(a field was edited|no seal)"):
        load(kept)


@pytest.mark.parametrize(
    "edit",
    [
        lambda study: study.update(test_blocks=8),
        lambda study: study["run"].update(batch_size=64),
        lambda study: study["tuning"].update(grid=[1.0]),
        lambda study: study["methods"][1].update(trainable=1),
    ],
)
def test_edited_study_is_refused(study, tmp_path, edit):
    folder = shutil.copytree(study, tmp_path / "verdict")
    file = folder / "study.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    edit(content)
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"study\.json is damaged .*a field was edited"):
        decide(folder)


@pytest.mark.parametrize("losses", [None, [4.0, None], []])
def test_row_of_an_older_release_without_losses_is_refused(diverged, losses):
    folder = diverged()
    edit_rows(folder, lambda row: row.update(test_losses=losses), "frozen", "seed1")
    with pytest.raises(VerificationError, match=r"/frozen/.*/seed1 .* no number: it was edited"):
        decide(folder)


def test_verdict_without_a_protocol_is_none(study, tmp_path):
    folder = shutil.copytree(study, tmp_path / "verdict")
    write(decide(folder), folder)
    content = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
    for protocol in (None, {"margin": 5.0}):
        change = {"protocol": protocol} if protocol else {}
        changed = {k: v for k, v in content.items() if k != "protocol"} | change
        (folder / "verdict.json").write_text(json.dumps(changed), encoding="utf-8")
        with pytest.raises(ConfigError, match=r"verdict\.json is no verdict: its protocol lacks"):
            check(folder / "verdict.json")


def test_study_of_another_kind_and_an_empty_field_more_are_refused(study, tmp_path):
    folder = shutil.copytree(study, tmp_path / "verdict")
    write(decide(folder), folder)
    file = folder / "verdict.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    for empty in ({}, []):
        file.write_text(json.dumps(content | {"more": empty}), encoding="utf-8")
        with pytest.raises(VerificationError, match=r"more is (\{\}|\[\])"):
            check(file)
    with pytest.raises(ConfigError, match="is none of qpeft verdict: it has no circuit"):
        protocol_of(load(SURVEY).study, margin=5.0)


def test_one_block_of_test_data_is_refused_before_work(tmp_path):
    data = tmp_path / "short.txt"
    data.write_text("a short text of few words\n\n" * 60, encoding="utf-8")
    request = request_of(n_layers=1)
    request = replace(request, run=request.run | {"data": str(data), "seq_len": 64})
    with pytest.raises(ConfigError, match=r"have 1 block of 64 tokens.*smaller --seq-len"):
        planned(request, tmp_path / "verdict", minutes=1e6, command="")
    with pytest.raises(ConfigError, match="two blocks of test data"):
        comparisons({"frozen": table(0, 1)[:, :1]}, LABELS, margin=5.0)


def test_lost_trial_that_lost_is_missed(diverged):
    folder = diverged()
    search = load(folder)["gaussian"].search
    worst = max(search.losses, key=lambda rate: search.losses[rate])
    drop_rows(folder, "gaussian", f"lr{worst:g}")
    with pytest.raises(ConfigError, match=f"the trial of the learning rate {worst:g} is missing"):
        decide(folder)


def test_trial_whose_process_was_killed_is_missed(diverged):
    folder = diverged()
    search = load(folder)["circuit"].search
    worst = max(search.losses, key=lambda rate: search.losses[rate])

    def killed(row):
        for name in ("curve", "valid_loss", "best_step"):
            row.pop(name, None)
        row.update(status="failed", error="the process was killed", error_type="TrainingError")

    edit_rows(folder, killed, "circuit", f"lr{worst:g}")
    with pytest.raises(ConfigError, match=f"learning rate {worst:g} failed.*study again"):
        decide(folder)


def test_seed_that_learned_nothing_is_named(diverged):
    folder = diverged()
    edit_rows(folder, lambda row: row.update(best_step=0), "frozen", "seed[13]")
    told = decide(folder).sentence
    assert "Seed 1 and 3 of frozen angles did not improve on the base, at the learning" in told


def test_diverged_seed_of_a_twin_leaves_decisions_against_it(diverged):
    verdict = decide(diverged(frozen="1", gaussian="1"))
    assert [(each.decision, each.n_seeds) for each in verdict.comparisons[:3]] == [
        ("better", 3),
        ("undecided", 3),  # equivalent with all seeds
        ("better", 4),
    ]


@pytest.mark.parametrize(
    "seeds, told",
    [
        ({"lora_r8": "0"}, "cannot decide: seed 0 of LoRA r=8 diverged, and its gain is the unit"),
        ({"circuit": "0", "frozen": "3"}, "so 2 of 4 seeds count, and a decision needs 3"),
    ],
)
def test_study_without_enough_seeds_cannot_decide(diverged, seeds, told):
    with pytest.raises(TrainingError, match=told):
        decide(diverged(**seeds))


def test_planted_study_gets_its_verdict(study):
    verdict = decide(study)
    assert [(each.against, each.decision) for each in verdict.comparisons] == [
        ("frozen", "better"),
        ("gaussian", "equivalent"),
        ("lora", "better"),
        ("lora_sb", "better"),
        ("uni_lora", "better"),
    ]
    assert verdict.gain == pytest.approx(1.0, abs=0.01)
    assert verdict.comparisons[0].effect == pytest.approx(-30, abs=0.5)
    assert not verdict.shown

    trained = {key: size.trained for key, size in verdict.adapters.items()}
    assert all(
        0.8 * trained["circuit"] <= trained[key] <= trained["circuit"]
        for key in ("lora", "uni_lora")
    )

    page = markdown(verdict)
    assert verdict.sentence in page
    assert "| frozen angles | better | -" in page


def test_a_verdict_follows_from_its_rows_or_is_refused(study, tmp_path):
    folder = shutil.copytree(study, tmp_path / "copy")
    write(decide(folder), folder)
    assert "<html" in (folder / "verdict.html").read_text(encoding="utf-8")

    file = folder / "verdict.json"
    assert check(file) == decide(folder)

    changed = read_json(file)
    file.write_text(file.read_text().replace('"shown":', '"shown": true, "shown":', 1))
    with pytest.raises(ConfigError, match="the key 'shown' occurs twice"):
        check(file)

    write_json(file, {**changed, "shown": 0})
    with pytest.raises(VerificationError, match="shown is 0, the rows give False"):
        check(file)

    changed["comparisons"][1]["effect"] -= 8
    write_json(file, changed)
    with pytest.raises(VerificationError, match=r"comparisons\.1\.effect is -"):
        check(file)

    # a margin that turns a difference into none; and without the twin that showed no benefit
    for edited in ({"margin": 50.0}, {"margin": 5.0, "twins": ["frozen"]}):
        edit_json(folder / PROTOCOL, **edited)
        with pytest.raises(VerificationError, match="is not that of its study"):
            decide(folder)


PUBLISHED = sorted((ROOT / "results" / "verdicts").glob("*.json"))


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_published_verdicts_follow_from_their_rows(file):
    check(file)


def test_verdict_that_the_page_quotes():
    """And the difference that it can detect is about the one that the plan forecasts."""
    page = " ".join((ROOT / "docs" / "verdict.md").read_text(encoding="utf-8").split())
    verdict = check(ROOT / "results" / "verdicts" / "hardware_efficient.json")

    assert verdict.sentence in page.replace(" > ", " ")

    size = Size(len(verdict.protocol.seeds), verdict.protocol.steps)
    forecast = detectable(size, len(verdict.comparisons))
    assert verdict.comparisons[0].detectable == pytest.approx(forecast, rel=0.5)


def test_what_was_fixed_cannot_change_after_the_first_row(study):
    other = replace(decide(study).protocol, margin=1.0)
    with pytest.raises(ConfigError, match=r"margin 1\.0 instead of 5\.0"):
        other.keep(study)


def test_rows_of_another_circuit_do_not_count(study):
    """With equal options the study resumes."""
    request = request_of(n_layers=1)
    assert planned(request, study, minutes=1, command="").forecast is None
    with pytest.raises(
        ConfigError, match=r"rows of another study.* for ladder, frozen angles, Gauss"
    ):
        planned(request_of(n_layers=2), study, minutes=1, command="")


def test_a_study_without_all_seeds_has_no_verdict(study, tmp_path):
    folder = shutil.copytree(study, tmp_path / "copy")
    drop_rows(folder, "gaussian", "seed2")
    with pytest.raises(ConfigError, match="Gaussian features 1 missing"):
        decide(folder)

    (folder / PROTOCOL).unlink()
    with pytest.raises(ConfigError, match="no folder of qpeft verdict"):
        decide(folder)


@pytest.mark.parametrize(
    "field, value, told",
    [
        ("seed", 7, "seed of the row .*/circuit/.*/seed1 .* is 7, and its study has 1"),
        ("role", "control", "role of the row .*/circuit/.*/seed1 .* is 'control'"),
        ("adapter", "lora", "adapter of the row .*/circuit/.*/seed1 .* is 'lora'"),
        ("test_loss", 1.0, "test_loss of the row .*/circuit/.*/seed1 .* is 1"),
        ("test_losses", [4.0] * 8, "test_loss of the row .*/circuit/.*/seed1 .* is 4"),
    ],
)
def test_edited_row_of_an_older_release_is_named(diverged, field, value, told):
    folder = diverged()
    edit_rows(folder, lambda row: row.update({field: value}), "circuit", "seed1")
    with pytest.raises(VerificationError, match=told):
        decide(folder)


@pytest.mark.parametrize(
    "edit, told",
    [
        (lambda study: study.update(test_blocks=4), "8 test_losses, .* test_blocks 4"),
        (lambda study: study["tuning"].update(grid=[1.0]), "the learning rates of LoRA r=8 "),
        (lambda study: study["tuning"].update(seed=7), "seed of the row .*/lr.* is 1000"),
    ],
)
def test_edited_study_of_an_older_release_is_refused(diverged, edit, told):
    folder = diverged()
    edit_rows(folder, lambda row: None)
    edit_study(folder, lambda study, _: edit(study))
    with pytest.raises(VerificationError, match=told):
        decide(folder)
