"""Divide the texts of PROTOCOL.md into train.txt, validation.txt and test.txt, a folder each;
the labelled sentences of stage 5 and the conversations of stage 6 into train.jsonl,
validation.jsonl and test.jsonl.

    python evidence/smollm2/texts.py DATA --out texts

DATA is a folder with the files of `SOURCES`. NumPy's and Python's documentation are those of the
installation.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from qpeft.files import write_text
from qpeft_lab.demo import corpus

SOURCES = {
    "e2e": "devset.csv",
    "shakespeare": "input.txt",
    "grimm": "GrimmsFairyTales.txt",
    "wikitext2": "wikitext2_valid.txt",
    "wikitext103": "wikitext103_raw_train_first1000.json",
    "gsm8k": "train.jsonl",
    "stories": "tinystories_1000.json",
    "sst2": "train.tsv",
}
TRAINING = 0.66
VALIDATION = 0.095
MOST = 1_000_000  # characters of a text that are used: a customer's text is small
LABELLED = "sst2-labels"  # the folder of stage 5
LABELLED_VALIDATION = 0.1  # the last part of the labelled training sentences
CHATS = "e2e-chats"  # the folder of stage 6
CHATS_TEST = 200  # meaning representations
CHATS_VALIDATION = 50
INSTRUCTION = "Describe this restaurant in one or two sentences."
SLICES = 5  # training texts of LoRAs from each of the texts below
SLICE = 80_000  # characters
OF_LORAS = ("shakespeare", "wikitext2", "wikitext103", "sst2")
OF_MIXTURE = ("shakespeare", "wikitext2", "sst2")
OF_CUSTOMERS = ("e2e", "gsm8k", "grimm", "stories", "numpy", "python")


def documents(name: str, data: Path) -> list[str]:
    """The units of a text that are not divided, in the order in which they are used."""
    if name == "numpy":
        return corpus.numpy_docs()
    if name == "python":
        return corpus.stdlib_docs()
    file = next(iter(sorted(data.rglob(SOURCES[name]))))
    if name == "gsm8k":
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return [f"{row['question']}\n{row['answer']}\n\n" for row in rows]
    content = file.read_text(encoding="utf-8")
    if name == "e2e":
        return list(references_by_meaning(content))
    if name == "sst2":
        return [line.partition("\t")[0] + "\n" for line in content.splitlines()]
    if file.suffix == ".json":
        return [f"{text}\n\n" for text in json.loads(content)]
    return content.splitlines(keepends=True)


def references_by_meaning(content: str) -> Iterator[str]:
    """The references of each meaning representation, a line each; in the order of its hash."""
    for references in by_meaning(content).values():
        yield "".join(reference + "\n" for reference in references)


def by_meaning(content: str) -> dict[str, list[str]]:
    """The references of each meaning representation, which are in the order of their hashes."""
    rows = sorted(
        csv.DictReader(content.splitlines()),
        key=lambda row: hashlib.sha256(row["mr"].encode()).hexdigest(),
    )
    return {
        meaning: [row["ref"].strip() for row in same]
        for meaning, same in groupby(rows, key=lambda row: row["mr"])
    }


def divided(units: Sequence[str]) -> dict[str, str]:
    """The three parts of a text, by their names."""
    text_so_far = 0
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    total = min(MOST, sum(map(len, units)))
    for unit in units:
        share = text_so_far / total
        if share >= 1:
            break
        is_training = share < TRAINING
        is_validation = share < TRAINING + VALIDATION
        part = "train" if is_training else "validation" if is_validation else "test"
        parts[part].append(unit if unit.endswith("\n") else unit + "\n\n")
        text_so_far += len(unit)
    return {name: "".join(chosen) for name, chosen in parts.items()}


def labelled(data: Path) -> dict[str, str]:
    """The sentences of SST-2 with their labels, as lines of JSON, by the names of the parts."""
    folder = next(iter(sorted(data.rglob(SOURCES["sst2"])))).parent
    training = labelled_lines(folder / "train.tsv")
    kept_for_validation = int(LABELLED_VALIDATION * len(training))
    return {
        "train": "".join(training[:-kept_for_validation]),
        "validation": "".join(training[-kept_for_validation:]),
        "test": "".join(labelled_lines(folder / "dev.tsv")),
    }


def labelled_lines(file: Path) -> list[str]:
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        sentence, _, label = line.rpartition("\t")
        lines.append(json.dumps({"text": sentence, "label": int(label)}) + "\n")
    return lines


def chats(data: Path) -> dict[str, str]:
    """E2E as conversations, as lines of JSON, by the names of the parts: the message is the
    instruction and a meaning representation, the answer a reference. No meaning is in two parts.
    """
    file = next(iter(sorted(data.rglob(SOURCES["e2e"]))))
    conversations = [
        "".join(conversation(meaning, reference) for reference in references)
        for meaning, references in by_meaning(file.read_text(encoding="utf-8")).items()
    ]
    test = len(conversations) - CHATS_TEST
    validation = test - CHATS_VALIDATION
    return {
        "train": "".join(conversations[:validation]),
        "validation": "".join(conversations[validation:test]),
        "test": "".join(conversations[test:]),
    }


def conversation(meaning: str, reference: str) -> str:
    asked = {"role": "user", "content": f"{INSTRUCTION}\n{meaning}"}
    answered = {"role": "assistant", "content": reference}
    return json.dumps({"messages": [asked, answered]}, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    training: dict[str, str] = {}
    for name in (*SOURCES, "numpy", "python"):
        parts = divided(documents(name, asked.data))
        training[name] = parts["train"]
        for part, text in parts.items():
            write_text(asked.out / name / f"{part}.txt", text)
    for part, lines in labelled(asked.data).items():
        write_text(asked.out / LABELLED / f"{part}.jsonl", lines)
    for part, lines in chats(asked.data).items():
        write_text(asked.out / CHATS / f"{part}.jsonl", lines)
    for name in OF_LORAS:
        step = (len(training[name]) - SLICE) // (SLICES - 1)  # the slices of a short text overlap
        for number in range(SLICES):
            text = training[name][number * step : number * step + SLICE]
            write_text(asked.out / "loras" / f"{name}{number}.txt", text)
    for mixture, names in {"mixture": OF_MIXTURE, "customers": OF_CUSTOMERS}.items():
        slices = [training[name][:SLICE] for name in names]
        write_text(asked.out / mixture / "train.txt", "\n".join(slices))


if __name__ == "__main__":
    main()
