"""Count the values of the meaning representations that the texts of stage 6 name.

    python evidence/smollm2/slot_values.py RUN texts/e2e-chats/test.jsonl results/smollm2/slot-values.json

RUN is the folder of the study: its rows have the generated texts, which published rows have not. The
file has, by method and seed, two numbers for each text: the values that it names, and those of its
meaning; and the same for the references, as a scale. A value counts as named if it is in the text as
whole words, without regard to case: `name[The Mill]` needs "the mill". `familyFriendly`, whose value
is yes or no, is left out.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from qpeft.files import write_text
from qpeft_lab.compare.summary import load

PEOPLE = "people"  # the key of the references, which several people wrote for a meaning
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
    conversations = asked.test.read_text(encoding="utf-8")
    meanings = meanings_of(conversations)
    counts = {
        result.key: {
            str(seed): counts_of(row["texts"], meanings[: len(row["texts"])])
            for seed, row in result.successes.items()
        }
        for result in load(asked.run).results
    }
    counts[PEOPLE] = {"all": counts_of(*references_of(conversations))}
    write_text(asked.out, json.dumps(counts) + "\n")  # in one line: there are 2,000 numbers


def references_of(conversations: str) -> tuple[list[str], list[str]]:
    """What people wrote, and the message with the meaning representation of each."""
    rows = [json.loads(line)["messages"] for line in conversations.splitlines()]
    return [row[1]["content"] for row in rows], [row[0]["content"] for row in rows]


def meanings_of(conversations: str) -> list[str]:
    """The messages with the meaning representations, each once, in the order in which `compare` asks for texts."""
    return list(dict.fromkeys(references_of(conversations)[1]))


def values_of(meaning: str) -> list[str]:
    """The values that a text shall name, in lower case."""
    slots = _SLOT.finditer(meaning)
    return [slot["value"].lower() for slot in slots if slot["slot"] != LEFT_OUT]


def counts_of(texts: Sequence[str], meanings: Sequence[str]) -> list[tuple[int, int]]:
    """Of each text, how many of its values it names, and how many it shall name."""
    counts = []
    for text, meaning in zip(texts, meanings, strict=True):
        values = values_of(meaning)
        n_named = sum(names(text.lower(), value) for value in values)
        counts.append((n_named, len(values)))
    return counts


def names(text: str, value: str) -> bool:
    """Whether the value is in the text as whole words: "the mill" is not in "the miller's"."""
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None


if __name__ == "__main__":
    main()
