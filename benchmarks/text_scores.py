"""Scores of texts next to those of the E2E NLG Challenge's script (docs/generated_texts.md).

    python benchmarks/text_scores.py examples/NLG/data/e2e/test.txt OUT
    python measure_scores.py -p OUT/references.txt OUT/texts.txt

The first file is that of github.com/microsoft/LoRA: a prompt and an answer in each line, separated by `||`. One answer
of each prompt, with words removed or replaced, is the text to score, and the others are its references. The script is
that of github.com/tuetschek/e2e-metrics. METEOR is computed where pycocoevalcap and Java are installed.
"""

import argparse
import random
from importlib.util import find_spec
from pathlib import Path

from qpeft.metrics import score_texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", type=Path)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    texts, references = changed(answers(asked.answers))
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    (asked.out / "references.txt").write_text(
        "\n\n".join("\n".join(own) for own in references) + "\n", encoding="utf-8"
    )
    print(f"{len(texts)} texts")
    for name, score in score_texts(texts, references, with_meteor=find_spec("pycocoevalcap") is not None).items():
        print(f"{name:16} {score}")


def answers(path: Path) -> dict[str, list[str]]:
    """The answers to each prompt."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        prompt, _, answer = line.partition("||")
        found.setdefault(prompt, []).append(answer.strip())
    return found


def changed(by_prompt: dict[str, list[str]]) -> tuple[list[str], list[list[str]]]:
    """One changed answer of each prompt that has several, and the other answers."""
    draw, texts, references = random.Random(0), [], []
    for own in (own for own in by_prompt.values() if len(own) > 1):
        words = own.pop(draw.randrange(len(own))).split()
        for _ in range(len(words) // 6):
            place = draw.randrange(len(words))
            if draw.random() < 0.5:
                words.pop(place)
            else:
                words[place] = draw.choice(words)
        if draw.random() < 0.1:
            words = words[: len(words) // 2] or words
        texts.append(" ".join(words))
        references.append(own)
    return texts, references


if __name__ == "__main__":
    main()
