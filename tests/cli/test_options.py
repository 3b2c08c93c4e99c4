"""Options made from dataclass fields: types, defaults, shared fields, panels, names of other tools."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
from typer.testing import CliRunner

from qpeft_lab.cli.command import application, command
from qpeft_lab.cli.console import Answer
from qpeft_lab.cli.options import Fields


@dataclass
class First:
    budget: float | None = field(default=None, metadata={"help": "How much.", "above": 0})
    hidden: tuple[int, ...] | None = field(default=None, metadata={"help": "Widths."})
    names: list[str] | str | None = field(default="all-linear", metadata={"help": "Which."})
    kind: str = field(default="soft", metadata={"help": "Sort.", "choices": ("soft", "hard")})
    flag: bool = field(default=False, metadata={"help": "Whether."})
    n: int = field(default=8, metadata={"help": "Count."})
    out: Path = field(default=Path("run"), metadata={"help": "Where."})
    seed: int = field(default=0, metadata={"help": "Seed."})
    many: list[str] = field(default_factory=list, metadata={"help": "Several."})
    set: list[str] | None = field(default=None, metadata={"help": "Pairs.", "repeated": True})
    lr: float = field(default=1.0, metadata={"help": "Rate."})
    internal: dict | None = None


@dataclass
class Second:
    seed: int = field(default=1, metadata={"help": "The other seed."})
    text: str | None = field(default=None, metadata={"help": "Words."})
    left_out: int = field(default=1, metadata={"help": "Not on the command line."})


@dataclass
class Own:
    place: str = field(metadata={"help": "Where.", "argument": True})
    above: int = field(default=1, metadata={"help": "Positive.", "at_least": 1})


@command
def probe(
    first: Annotated[dict[str, Any], Fields(First, "One")],
    second: Annotated[dict[str, Any], Fields(Second, "Two", leave_out=("left_out",))],
    own: Own,
) -> Answer:
    """Do it."""
    return Answer({"first": first, "second": second, "own": vars(own)}, lambda _: None)


def call(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(application([probe]), ["here", *arguments, "--json"])
    return {"code": result.exit_code, **(json.loads(result.stdout) if result.stdout else {"error": result.stderr})}


def test_options_not_given_are_not_passed():
    assert call() == {"code": 0, "first": {}, "second": {}, "own": {"place": "here", "above": 1}}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--n", "8"], {"n": 8}),  # the default
        (["--budget", "0.5"], {"budget": 0.5}),
        (["--budget", "100_000"], {"budget": 100_000}),
        (["--budget", "1e-3"], {"budget": 0.001}),
        (["--hidden", "32,64,32"], {"hidden": [32, 64, 32]}),
        (["--names", "q_proj, v_proj"], {"names": ["q_proj", "v_proj"]}),
        (["--names", "all-linear"], {"names": "all-linear"}),
        (["--kind", "hard"], {"kind": "hard"}),
        (["--many", "a,b"], {"many": ["a", "b"]}),
        (["--set", "a=1", "--set", "b=2"], {"set": ["a=1", "b=2"]}),
        (["--no-flag"], {"flag": False}),
        (["--out", "a/b"], {"out": "a/b"}),
        (["--learning-rate", "0.5"], {"lr": 0.5}),
        (["--learning_rate", "0.5"], {"lr": 0.5}),
    ],
)
def test_value_is_converted(arguments, expected):
    assert call(*arguments)["first"] == expected


def test_shared_field_is_one_option_passed_to_both():
    found = call("--seed", "7")
    assert found["first"] == found["second"] == {"seed": 7}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--budget", "half"], "--budget"),
        (["--n", "2.5"], "--n"),
        (["--hidden", "32,x"], "--hidden"),
        (["--names", "a,,b"], "--names"),
        (["--left-out", "1"], "--left-out"),
        (["--internal", "1"], "--internal"),
        (["--above", "0"], "above"),
        (["--out", ""], "--out"),  # as `--out "$OUT"` with a variable that is not set
        ([""], "empty"),
    ],
)
def test_invalid_value_exits_with_code_2(arguments, named):
    found = call(*arguments)
    assert found["code"] == 2
    assert named in found.get("message", "") + found["error"]
