"""Choose the winners of a search of evidence/PROTOCOL.md, and write the study that runs them again.

    python evidence/winners.py keep RUN results/equal-search/SETUP.jsonl.xz      # a study, finished or not
    python evidence/winners.py restore results/equal-search/SETUP.jsonl.xz RUN   # its command resumes there
    python evidence/winners.py final results/equal-search/SETUP.jsonl.xz FINAL.yaml
    python evidence/winners.py epochs results/equal-search/SETUP.jsonl.xz EPOCHS.yaml

`final` writes the study `equal-search-final` of a setup: the winner of each family at each budget,
with new seeds; `epochs` that of some families for one epoch, and with `--epochs 4` of its run for
four.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from qpeft.errors import InputError
from qpeft.files import write_json, write_text
from qpeft_lab.compare.rows import ROWS
from qpeft_lab.compare.study import STUDY
from qpeft_lab.compare.summary import Result, Summary, load, publish
from qpeft_lab.files import json_line

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
FINAL = "equal-search-final"
ADAPTERS = "quantum-adapters-final"
EPOCHS = "equal-search-epochs"
ENDED = {
    FINAL,
    ADAPTERS,
    EPOCHS,
    "margins",
    "elsewhere",
    "angles",
    "smollm2",
}  # setups count once they have ended
SETUPS = {  # in the order of the tables
    "embedded-numpy": "embedded base, NumPy's documentation",
    "embedded-shakespeare": "embedded base, Shakespeare",
    "stories-grimm": "stories260K, Grimm's tales",
    "stories-shakespeare": "stories260K, Shakespeare",
    "bytes1m-grimm": "bytes1m, Grimm's tales",
    "bytes1m-wikitext2": "bytes1m, WikiText-2",
    "bytes1m-shakespeare": "bytes1m, Shakespeare",
    "llama10m-shakespeare": "llama10m, Shakespeare",
}
SEARCHED = {  # by base, the setup whose search chose for others on it
    "embedded": "embedded-numpy",
    "stories": "stories-grimm",
    "bytes1m": "bytes1m-grimm",
}
CIRCUITS = {"qpa", "plain", "framed", "cua", "magnitude", "quic", "qaa", "qchft"}  # families
BUDGETS = (128, 400, 1300, 5000)
TEST_BLOCKS = 192
_KEY = re.compile(r"(?P<family>.+)_(?P<budget>\d+)_[abc]")


class Second(NamedTuple):
    """A study that runs winners again."""

    families: Sequence[str]  # all if empty
    budgets: Sequence[int]  # all if empty
    seeds: Sequence[int]
    run: dict[str, Any]  # other settings than those of the search


STUDIES = {
    "final": Second((), (), range(1, 11), {}),
    "epochs": Second(
        families=("framed", "uni", "xs", "tokens", "lora"),
        budgets=BUDGETS[:3],
        seeds=range(1, 6),
        run={"steps": None, "epochs": 1},
    ),
}


class Winner(NamedTuple):
    """The configuration of a family with the lowest validation loss at a budget, and its learning
    rate.
    """

    result: Result
    lr: float
    loss: float
    gain: float  # over the untrained base, in validation loss
    n: int = 1  # configurations of the family that fit

    @property
    def key(self) -> str:
        """That of the study which runs the winners again, such as framed_400."""
        return self.result.key.rpartition("_")[0]


@cache
def summaries_of(study: str) -> dict[str, Summary]:
    """The results of a study by setup; of the runs of the protocol those that have ended."""
    files = sorted((RESULTS / study).glob("*.xz"))
    summaries = {file.name.partition(".")[0]: load(file) for file in files}
    if study not in ENDED:
        return summaries
    return {
        setup: summary
        for setup, summary in summaries.items()
        if not any(result.lost for result in summary.results)
    }


@cache
def winners_of(setup: str, study: str = FINAL) -> dict[tuple[str, int], Winner]:
    """The winners of a search, of which the study, such as `equal-search-final`, is the second run."""
    folder = RESULTS / study.removesuffix("-final")
    own = folder / f"{setup}.jsonl.xz"
    others = folder / f"{SEARCHED[setup.partition('-')[0]]}.jsonl.xz"
    return winners(load(own if own.exists() else others))


def winners(summary: Summary) -> dict[tuple[str, int], Winner]:
    """The winner of each (family, budget); a family without an adapter that is small enough has
    none.

    Raises InputError for a search that has not ended: its winners would depend on when it was
    stopped.
    """
    lowest: dict[tuple[str, int], Winner] = {}
    untrained = summary["none"].mean("valid_loss") or 0
    for result in summary.results:
        match = _KEY.fullmatch(result.key)
        search = result.search
        if match is None:
            continue
        if len(search.losses) < len(search.rates):
            raise InputError(
                f"{result.key} has not tried all learning rates; run the study until it ends"
            )
        budget = int(match["budget"])
        if search.best is None or result.method.trainable > budget:
            continue
        place = (match["family"], budget)
        loss = search.losses[search.best]
        winner = Winner(result, search.best, loss, untrained - loss)
        known = lowest.get(place)
        if known is not None:
            winner = min(known, winner, key=lambda each: each.loss)._replace(n=known.n + 1)
        lowest[place] = winner
    return lowest


def study_of_winners(summary: Summary, name: str) -> dict[str, Any]:
    """The content of the study `final` or `epochs`; its data are given on the command line."""
    second = STUDIES[name]
    in_order_of_budget = sorted(winners(summary).items(), key=lambda item: item[0][1])
    chosen = []
    for (family, budget), winner in in_order_of_budget:
        if second.families and family not in second.families:
            continue
        if second.budgets and budget not in second.budgets:
            continue
        method = winner.result.method
        chosen.append(
            {
                "key": winner.key,
                "label": winner.result.label,
                "method": method.method,
                "host": method.host,
                "settings": method.settings,
                "lr": winner.lr,
            }
        )
    return {
        "name": f"{summary.study.name}-{name}",
        "title": "The winners of an equal search, with new seeds on new text",
        "question": "Which family is the best at each budget? The protocol is evidence/PROTOCOL.md.",
        "reference": chosen[0]["key"],
        "seeds": [*second.seeds],
        "tuning": {"grid": [1.0]},
        "run": summary.study.model_dump(exclude_defaults=True)["run"] | second.run,
        "test_blocks": TEST_BLOCKS,
        "costs": False,
        "methods": [{"key": "none", "label": "untrained base", "method": "none"}, *chosen],
    }


def best(chosen: Mapping[tuple[str, int], Winner], budget: int, has_circuit: bool) -> Winner:
    """The winner with the lowest validation loss of the search, with at most so many parameters."""
    of_kind = [
        winner
        for (family, _), winner in chosen.items()
        if (family in CIRCUITS) is has_circuit and winner.result.method.trainable <= budget
    ]
    return min(of_kind, key=lambda winner: winner.loss)


def restore(file: Path, folder: Path) -> None:
    """The folder of a study whose rows were kept."""
    study, *rows = map(json.loads, lzma.decompress(file.read_bytes()).splitlines())
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / ROWS, "".join(map(json_line, rows)))
    write_json(folder / STUDY, study)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("do", choices=["keep", "restore", *STUDIES])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    asked = parser.parse_args()
    if asked.do == "keep":
        publish(asked.source, asked.target)
    elif asked.do == "restore":
        restore(asked.source, asked.target)
    else:
        study = study_of_winners(load(asked.source), asked.do)
        write_text(asked.target, yaml.safe_dump(study, sort_keys=False))


if __name__ == "__main__":
    main()
