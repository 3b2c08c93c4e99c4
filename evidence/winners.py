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
FINAL, ADAPTERS, EPOCHS = "equal-search-final", "quantum-adapters-final", "equal-search-epochs"
ENDED = (
    FINAL,
    ADAPTERS,
    EPOCHS,
    "margins",
    "elsewhere",
)  # studies of which setups appear once they have ended
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
SEARCHED = {
    "embedded": "embedded-numpy",
    "stories": "stories-grimm",
    "bytes1m": "bytes1m-grimm",
}  # where others chose
CIRCUITS = (
    "qpa",
    "plain",
    "framed",
    "cua",
    "magnitude",
    "quic",
    "qaa",
    "qchft",
)  # families that simulate circuits
BUDGETS = (128, 400, 1300, 5000)
TEST_BLOCKS = 192
LONG = ("framed", "uni", "xs", "tokens", "lora")
STUDIES: dict[str, tuple[Sequence[str], Sequence[int], Sequence[int], dict[str, Any]]] = {
    # families and budgets, or all, seeds and the run
    "final": ((), (), range(1, 11), {}),
    "epochs": (LONG, BUDGETS[:3], range(1, 6), {"steps": None, "epochs": 1}),
}
_KEY = re.compile(r"(?P<family>.+)_(?P<budget>\d+)_[abc]")


class Winner(NamedTuple):
    """The configuration of a family with the lowest validation loss at a budget, and its learning
    rate.
    """

    found: Result
    lr: float
    loss: float
    gain: float  # over the untrained base, in validation loss
    n: int = 1  # configurations of the family that fit


def summaries_of(study: str) -> dict[str, Summary]:
    """The results of a study by setup; of the runs of the protocol those that have ended."""
    found = {
        file.name.partition(".")[0]: load(file) for file in sorted((RESULTS / study).glob("*.xz"))
    }
    ends = study in ENDED
    return {
        name: s for name, s in found.items() if not ends or not any(one.lost for one in s.results)
    }


def winners_of(setup: str, study: str = FINAL) -> dict[tuple[str, int], Winner]:
    """The winners of a search, of which the study, such as `equal-search-final`, is the second run."""
    folder = RESULTS / study.removesuffix("-final")
    own = folder / f"{setup}.jsonl.xz"
    return winners(
        load(own if own.exists() else folder / f"{SEARCHED[setup.partition('-')[0]]}.jsonl.xz")
    )


def winners(summary: Summary) -> dict[tuple[str, int], Winner]:
    """The winner of each (family, budget); a family without an adapter that is small enough has
    none.

    Raises InputError for a search that has not ended: its winners would depend on when it was
    stopped.
    """
    best: dict[tuple[str, int], Winner] = {}
    for found in summary.results:
        match, search = _KEY.fullmatch(found.key), found.search
        if match and len(search.losses) < len(search.rates):
            raise InputError(
                f"{found.key} has not tried all learning rates; run the study until it ends"
            )
        if match is None or search.best is None or found.method.trainable > int(match["budget"]):
            continue
        loss, place = search.losses[search.best], (match["family"], int(match["budget"]))
        one = Winner(found, search.best, loss, (summary["none"].mean("valid_loss") or 0) - loss)
        known = best.get(place)
        best[place] = (
            min(known, one, key=lambda w: w.loss)._replace(n=known.n + 1) if known else one
        )
    return best


def study_of_winners(summary: Summary, name: str) -> dict[str, Any]:
    """The content of the study `final` or `epochs`; its data are given on the command line."""
    families, budgets, seeds, run = STUDIES[name]
    chosen = [
        {
            "key": f"{family}_{budget}",
            "label": one.found.label,
            **{field: getattr(one.found.method, field) for field in ("method", "host", "settings")},
            "lr": one.lr,
        }
        for (family, budget), one in sorted(winners(summary).items(), key=lambda item: item[0][1])
        if family in (families or [family]) and budget in (budgets or [budget])
    ]
    return {
        "name": f"{summary.study.name}-{name}",
        "title": "The winners of an equal search, with new seeds on new text",
        "question": "Which family is the best at each budget? The protocol is evidence/PROTOCOL.md.",
        "reference": chosen[0]["key"],
        "seeds": [*seeds],
        "tuning": {"grid": [1.0]},
        "run": summary.study.model_dump(exclude_defaults=True)["run"] | run,
        "test_blocks": TEST_BLOCKS,
        "costs": False,
        "methods": [{"key": "none", "label": "untrained base", "method": "none"}, *chosen],
    }


def best(chosen: Mapping[tuple[str, int], Winner], most: int, has_circuit: bool) -> str:
    """The key of the winner with the lowest validation loss of the search, with at most so many
    parameters.
    """
    found = {
        f"{family}_{budget}": one.loss
        for (family, budget), one in chosen.items()
        if (family in CIRCUITS) is has_circuit and one.found.method.trainable <= most
    }
    return min(found, key=lambda key: found[key])


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
    if asked.do in STUDIES:
        write_text(
            asked.target,
            yaml.safe_dump(study_of_winners(load(asked.source), asked.do), sort_keys=False),
        )
    else:
        {"keep": publish, "restore": restore}[asked.do](asked.source, asked.target)


if __name__ == "__main__":
    main()
