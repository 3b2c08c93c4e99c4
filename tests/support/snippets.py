"""What the pages tell their readers to type, made so small that a test can do it.

A page names models that must be downloaded and trainings that take minutes. `STAND_INS` and `CHEAP` are the whole
difference between what is printed and what is run; `NOT_RUN` is what no test can run, with the reason.
"""

import re
import shlex
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# what a page names -> the file or folder (see `conftest.py`) that stands for it
STAND_INS = {
    "gpt2": "base",
    "path/or/hub-id": "base",
    "google/vit-base-patch16-224-in21k": "vit",
    "numpy-docs": "docs.jsonl",
    "survey": "tiny.yaml",
    "controls": "tiny.yaml",
    "shots": "tiny.yaml",
    "noise": "tiny.yaml",
}
# a page may speak of these as the reader's own; they are put where it runs, unless a command there makes them
GIVEN = ("run", "my-adapter", "photos", "text.txt", "train.jsonl", "train.tsv")
# and what stands for it in a block of Python
HUB_NAMES = ("gpt2", "path/or/hub-id")
CHEAP = {"--steps": "2", "--seeds": "0", "--samples": "20", "--max-new-tokens": "4"}

NOT_RUN = {
    "make ": "sets up an environment; CI is made of these targets",
    "pip install": "changes the environment; the extras are what CI installs",
    "python benchmarks/": "measures for minutes or hours; bench, many_adapters, kills and bad_files have tests",
    "python -m qpeft.demo.build_base": "an hour of training; tests/demo builds a small one",
    "--executor ray": "needs a cluster; tests/compare/test_ray.py has one on this machine",
    "torchrun ": "several processes; tests/trainers/test_distributed.py runs them",
    "accelerate launch": "several processes; tests/trainers/test_distributed.py runs them",
    "python examples/": "tests/examples runs them with few steps",
    "diagnose with --trainings": "docs/diagnostics.md runs the same of another folder",
    "--trainings --seeds 0,1,2 --steps 60": "docs/diagnostics.md runs the same",
    "qpeft demo --methods": "docs/cli.md runs the demo, tests/cli/test_demo_command.py its methods",
    "braket.aws.qubit": "needs an account",
    "QiskitRuntimeService": "needs an account",
}


# what these print is words chosen by figures, which few steps do not give
NOT_COMPARED = ("qpeft diagnose",)


class Snippet(NamedTuple):
    """A fenced block of a page, and the `text` block that follows it at once, which shows what it prints."""

    language: str
    text: str
    shows: str | None


FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$\n?", flags=re.DOTALL | re.MULTILINE)


def snippets(page: Path) -> list[Snippet]:
    """The page's fenced blocks of code, in its order."""
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    return [Snippet(one[1], one[2], _shown(text, one, after)) for one, after in zip_longest(found, found[1:])]


def _shown(text: str, block: re.Match[str], after: re.Match[str] | None) -> str | None:
    is_next = after is not None and not text[block.end() : after.start()].strip()
    return after[2] if is_next and after[1] == "text" else None


def commands(snippet: Snippet) -> list[str]:
    """The lines of a block of shell commands; one that goes on after a backslash is one."""
    return [line.strip() for line in snippet.text.replace("\\\n", " ").splitlines() if line.strip()]


def why_not_run(text: str) -> str | None:
    """The reason, where `text` is among what is not run."""
    return next((reason for part, reason in NOT_RUN.items() if part in text), None)


def cheap(line: str) -> list[str]:
    """The arguments of a `qpeft` line, with stand-ins for names and small numbers for large ones."""
    words = shlex.split(line, comments=True)[1:]
    is_study = words[:2] in (["compare", "run"], ["compare", "plan"])
    found = []
    for before, word in zip(["", *words], words, strict=False):
        names_something = before.startswith("--") and before != "--out" and before != "--method"
        stands = names_something or (is_study and before in ("run", "plan"))
        found.append(CHEAP.get(before) or (STAND_INS.get(word, word) if stands else word))
    return [*found, "--steps", "2"] if words[0] in ("train", "demo") and "--steps" not in words else found


def python(text: str, folder: Path) -> str:
    """A block of Python with stand-ins for the names of models that must be downloaded."""
    for name in HUB_NAMES:
        text = text.replace(f'"{name}"', repr(str(folder / STAND_INS[name])))
    return text.replace("seeds=(0, 1, 2), steps=40", "seeds=(0,), steps=2")


def form(text: str) -> str:
    """The words without figures, folders, and what only fills a line; so lines may break elsewhere."""
    text = re.sub(r"(?<!\w)[\u2212+-]?\d[\d.,]*(e-?\d+)?( [KM]?B\b)?", "#", text)
    text = re.sub(r"'[^' ]*/[^' ]*'", "'FOLDER'", text)
    return " ".join(re.sub(r"[─-]{2,}", " ", text).split())


def shows(shown: str, printed: str) -> bool:
    """Whether a page's `text` block is, in form, what was printed; `...` on a line of its own leaves something out."""
    rest = form(printed)
    for part in filter(None, map(form, re.split(r"^\.\.\.$", shown, flags=re.MULTILINE))):
        _, found, rest = rest.partition(part)
        if not found:
            return False
    return True
