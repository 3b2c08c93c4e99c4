"""Count the values of the meaning representations that the texts of stage 6 name.

    python evidence/smollm2/slot_values.py RUN texts/e2e-chats/test.jsonl results/smollm2/slot-values.json

RUN is the folder of the study: its rows have the generated texts, which published rows have not. A
value counts as named if it is in the text as whole words, without regard to case: `name[The Mill]`
needs "the mill". `familyFriendly`, whose value is yes or no, is left out.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from qpeft.files import write_json
from qpeft_lab.compare.summary import load

LEFT_OUT = "familyFriendly"
_SLOT = re.compile(r"\s*(?P<slot>[^\[,\n]+)\[(?P<value>[^\]]*)\]")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    meanings = meanings_of(asked.test.read_text(encoding="utf-8"))
    scores = {
        result.key: {
            str(seed): scores_of(row["texts"], meanings[: len(row["texts"])])
            for seed, row in result.successes.items()
        }
        for result in load(asked.run).results
    }
    write_json(asked.out, scores)


def meanings_of(conversations: str) -> list[str]:
    """The messages with the meaning representations, each once, in the order in which `compare` asks for texts."""
    rows = [json.loads(line) for line in conversations.splitlines()]
    return list(dict.fromkeys(row["messages"][0]["content"] for row in rows))


def values_of(meaning: str) -> list[str]:
    """The values that a text shall name, in lower case."""
    slots = _SLOT.finditer(meaning)
    return [slot["value"].lower() for slot in slots if slot["slot"] != LEFT_OUT]


def scores_of(texts: Sequence[str], meanings: Sequence[str]) -> dict[str, float]:
    """`values`: the share of the values that are named; `texts`: the share of the texts that name
    all of theirs. Both from 0 to 1.
    """
    named = [
        [names(text.lower(), value) for value in values_of(meaning)]
        for text, meaning in zip(texts, meanings, strict=True)
    ]
    return {
        "values": fmean(is_named for of_text in named for is_named in of_text),
        "texts": fmean(all(of_text) for of_text in named),
    }


def names(text: str, value: str) -> bool:
    """Whether the value is in the text as whole words: "the mill" is not in "the miller's"."""
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None


if __name__ == "__main__":
    main()
