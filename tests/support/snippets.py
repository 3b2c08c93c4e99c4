"""The code blocks of the pages, and how a test runs them in little time and without downloads.

`STAND_INS` and `CHEAP` replace names of models and data, and numbers of steps. `NOT_RUN` lists what
a test cannot run.
"""

import re
import shlex
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# name on a page -> file or folder that replaces it (tests/docs/conftest.py creates them)
STAND_INS = {
    "gpt2": "base",
    "smollm2": "build/smollm2",
    "roberta-base": "base",
    "glue/mrpc": "glue/mrpc:mrpc-files",
    "google/vit-base-patch16-224-in21k": "vit",
    "openai-community/gpt2": "gpt2-small",
    "google/gemma-2b": "gemma-2b",
    "numpy-docs": "docs.jsonl",
    "domain.txt": "text.txt",
    "e2e-train.csv": "pairs.csv",
    "e2e-test.csv": "few-pairs.csv",
    **dict.fromkeys(("survey", "controls", "shots", "noise", "bits"), "tiny.yaml"),
    **{
        f"recipes/{name}.yaml": "tiny.yaml"
        for name in ("qpa-gpt2-wikitext2", "qpa-smollm2-wikitext2", "quantum-peft-deberta-glue")
    },
    "glue/rte": "docs.jsonl",
}
HUB_NAMES = ("gpt2",)  # replaced in Python as well
CHEAP = {
    "--steps": "2",
    "--max-new-tokens": "4",
    "--seq-len": "64",
    "--epochs": "1",
    "--samples": "50",
}

# part of a command -> why it is not run
NOT_RUN = {
    "curl -LO ": "downloads",
    "unzip ": "what was downloaded",
    "make ": "creates an environment; CI consists of these targets",
    "pip install": "changes the environment; CI installs the extras",
    "python benchmarks/": "takes minutes or hours; bench, kills and bad_files have tests",
    "python scripts/build_base.py": "an hour of training; tests/demo builds a small one",
    "--model minilm": "needs a base that is downloaded; tests/training has small encoders",
    "export GLIBC_TUNABLES": "for a process that starts afterwards; tests/cli has the command's own",
    "qpeft base ": "downloads; tests/demo builds a tiny package",
    **dict.fromkeys(
        ("torchrun ", "accelerate launch", "fully_shard(", 'fsdp="', "full_state_dict=True"),
        "several processes; tests/trainers/test_distributed.py runs them",
    ),
    "is_world_process_zero": "tests/trainers/test_distributed.py runs such a script",
    **dict.fromkeys(
        ("--method own_method.py:METHOD", "--ansatz own_ansatz.py:cz_ring"),
        "tests/cli/test_code_of_others.py runs the file through every command",
    ),
    "compare run entangling.yaml --out": (
        "takes an hour; the smoke run of the page runs the same methods"
    ),
    "qpeft verify-served ": "needs a server; tests/cli/test_verify_served.py has one",
    "qpeft verdict check results/": "tests/verdict checks every kept verdict",
    "qpeft verdict mine.py:circuit": "takes minutes; tests/verdict and tests/cli run it on less",
    "braket.aws.qubit": "needs an account",
    "QiskitRuntimeService": "needs an account",
}


# their sentences depend on the values, which differ after few steps
NOT_COMPARED = ("qpeft diagnose",)


class Snippet(NamedTuple):
    """A fenced block of a page, and the output that a `text` block directly after it shows."""

    language: str
    text: str
    shows: str | None


FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$\n?", flags=re.DOTALL | re.MULTILINE)


def snippets(page: Path) -> list[Snippet]:
    """The fenced blocks of the page, in order."""
    text = page.read_text(encoding="utf-8")
    matches = list(FENCE.finditer(text))
    return [
        Snippet(one[1], one[2], _shown(text, one, after))
        for one, after in zip_longest(matches, matches[1:])
    ]


def _shown(text: str, block: re.Match[str], after: re.Match[str] | None) -> str | None:
    is_next = after is not None and not text[block.end() : after.start()].strip()
    return after[2] if is_next and after[1] == "text" else None


def commands(snippet: Snippet) -> list[str]:
    """The commands of a shell block; a backslash continues a line."""
    return [line.strip() for line in snippet.text.replace("\\\n", " ").splitlines() if line.strip()]


def why_not_run(text: str) -> str | None:
    """The reason why `text` is not run, if there is one."""
    return next((reason for part, reason in NOT_RUN.items() if part in text), None)


def cheap(line: str) -> list[str]:
    """The arguments of a `qpeft` line with stand-ins and few steps."""
    words = shlex.split(line, comments=True)[1:]
    is_study = words[:2] in (["compare", "run"], ["compare", "plan"])
    found = []
    for before, word in zip(["", *words], words, strict=False):
        names_something = before.startswith("--") and before != "--out" and before != "--method"
        stands = names_something or (is_study and before in ("run", "plan"))
        found.append(CHEAP.get(before) or (STAND_INS.get(word, word) if stands else word))
    option = {"train": "--steps", "demo": "--steps", "diagnose": "--samples"}.get(words[0])
    is_long = option is not None and option not in words
    return [*found, option, CHEAP[option]] if is_long else found


def python(text: str, folder: Path) -> str:
    """A block of Python with stand-ins for models that would be downloaded, and fewer steps."""
    for name in HUB_NAMES:
        text = text.replace(f'"{name}"', repr(str(folder / STAND_INS[name])))
    return re.sub(r"(steps=)[45]0\b", r"\g<1>4", text)


def form(text: str) -> str:
    """The words without values, folders, rules and line breaks."""
    text = re.sub(r"(?<!\w)[\u2212+-]?\d[\d.,]*(e-?\d+)?( [KM]?B\b)?", "#", text)
    text = re.sub(r"'[^' ]*/[^' ]*'", "'FOLDER'", text)
    return " ".join(re.sub(r"[─-]{2,}", " ", text).split())


def shows(shown: str, printed: str) -> bool:
    """Whether the form of `shown` is that of `printed`; a line `...` stands for any text."""
    rest = form(printed)
    for part in filter(None, map(form, re.split(r"^\.\.\.$", shown, flags=re.MULTILINE))):
        _, found, rest = rest.partition(part)
        if not found:
            return False
    return True
