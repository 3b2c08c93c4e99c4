"""Stage 6 of the evidence on SmolLM2: which adapters it takes, and what it counts in their texts."""

import csv
import json
from types import SimpleNamespace

import pytest
import yaml
from snippets import ROOT

import winners
from qpeft.errors import InputError
from qpeft_lab.compare.study import Study

SMOLLM2 = ROOT / "evidence" / "smollm2"
FIELDS = ["name[The Mill]", "eatType[pub]", "priceRange[£20-25]", "familyFriendly[yes]"]


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    monkeypatch.syspath_prepend(SMOLLM2)


@pytest.fixture
def ended():
    """A study on SmolLM2 that has ended and has the two methods which the stage always has."""
    return winners.load(winners.RESULTS / "smollm2" / "twins-e2e.jsonl.xz")


def test_study_has_the_adapters_with_the_lowest_validation_losses(ended):
    from generation_study import FRAME, methods_of

    methods = methods_of(ended)

    losses = {
        result.key: sum(row["valid_loss"] for row in result.successes.values()) / 5
        for result in ended.results
        if result.key not in ("none", "lora_r8")
    }
    best = sorted(losses, key=losses.get)[:3]
    assert [method["key"] for method in methods] == ["none", "lora_r8", *best]
    assert methods[2]["lr"] == ended[best[0]].lr
    frame = yaml.safe_load(FRAME.read_text(encoding="utf-8"))
    study = Study.model_validate(frame | {"methods": methods})
    assert {spec.key: spec.lr for spec in study.methods}[best[0]] == ended[best[0]].lr


def test_stage_2_that_has_not_ended_chooses_nothing(ended):
    from generation_study import methods_of

    first = SimpleNamespace(key="none", lost={10: "missing"})
    with pytest.raises(InputError, match="rows are missing of none"):
        methods_of(SimpleNamespace(results=[first, *ended.results]))


def test_values_of_a_meaning_are_found_whatever_their_case():
    from slot_values import counts_of

    meaning = "Describe this restaurant.\n" + ", ".join(FIELDS)
    texts = ["The mill is a pub at £20-25 a head.", "A pub: the Miller's."]
    assert counts_of(texts, [meaning] * 2) == [(3, 3), (1, 3)]


def test_no_meaning_is_in_two_parts(tmp_path):
    from slot_values import meanings_of
    from texts import CHATS_TEST, CHATS_VALIDATION, chats

    n_training = 30
    n_meanings = n_training + CHATS_VALIDATION + CHATS_TEST
    with (tmp_path / "devset.csv").open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["mr", "ref"])
        rows.writerows([f"name[{i}]", f"{i}, {k}"] for i in range(n_meanings) for k in range(2))

    parts = chats(tmp_path)

    meanings = {name: meanings_of(lines) for name, lines in parts.items()}
    sizes = {name: len(own) for name, own in meanings.items()}
    assert sizes == {"train": n_training, "validation": CHATS_VALIDATION, "test": CHATS_TEST}
    assert len({meaning for own in meanings.values() for meaning in own}) == n_meanings
    asked, answered = json.loads(parts["test"].splitlines()[1])["messages"]
    name = asked["content"].partition("name[")[2].removesuffix("]")
    assert answered["content"] == f"{name}, 1"
