"""Options generated from dataclass fields: types, defaults, shared fields."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from qpeft.cli.console import Answer
from qpeft.cli.options import Fields, expand


@dataclass
class First:
    budget: float | None = field(default=None, metadata={"help": "How much."})
    hidden: tuple[int, ...] | None = field(default=None, metadata={"help": "Widths."})
    names: list[str] | str | None = field(default="all-linear", metadata={"help": "Which."})
    kind: str = field(default="soft", metadata={"help": "Sort.", "choices": ("soft", "hard")})
    flag: bool = field(default=False, metadata={"help": "Whether."})
    n: int = field(default=8, metadata={"help": "Count."})
    out: Path = field(default=Path("run"), metadata={"help": "Where."})
    seed: int = field(default=0, metadata={"help": "Seed."})
    many: list[str] = field(default_factory=list, metadata={"help": "Several."})
    internal: dict | None = None


@dataclass
class Second:
    seed: int = field(default=1, metadata={"help": "The other seed."})
    text: str | None = field(default=None, metadata={"help": "Words."})
    left_out: int = field(default=1, metadata={"help": "Not on the command line."})


def call(*arguments: str) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def probe(
        first: Annotated[dict, Fields(First, "One")],
        second: Annotated[dict, Fields(Second, "Two", leave_out=("left_out",))],
        own: Annotated[str, typer.Option()] = "mine",
    ) -> Answer:
        seen.update(first=first, second=second, own=own)
        return Answer({}, lambda _: None)

    app = typer.Typer()
    app.command()(expand(probe))
    result = CliRunner().invoke(app, list(arguments))
    return {**seen, "code": result.exit_code, "output": " ".join(result.output.replace("│", " ").split())}


def test_options_not_given_are_not_passed():
    assert call() == {"first": {}, "second": {}, "own": "mine", "code": 0, "output": ""}


def test_default_value_given_explicitly_is_passed():
    assert call("--n", "8")["first"] == {"n": 8}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--budget", "0.5"], {"budget": 0.5}),
        (["--budget", "100_000"], {"budget": 100_000}),
        (["--budget", "1e-3"], {"budget": 0.001}),
        (["--hidden", "32,64,32"], {"hidden": (32, 64, 32)}),
        (["--hidden", "16"], {"hidden": (16,)}),
        (["--names", "q_proj, v_proj"], {"names": ["q_proj", "v_proj"]}),
        (["--names", "q_proj"], {"names": ["q_proj"]}),
        (["--names", "all-linear"], {"names": "all-linear"}),
        (["--kind", "hard"], {"kind": "hard"}),
        (["--many", "a,b"], {"many": ["a", "b"]}),
        (["--flag"], {"flag": True}),
        (["--no-flag"], {"flag": False}),
        (["--out", "a/b"], {"out": Path("a/b")}),
    ],
)
def test_value_is_converted(arguments, expected):
    assert call(*arguments)["first"] == expected


def test_integer_for_a_float_option_stays_an_integer():
    assert type(call("--budget", "100000")["first"]["budget"]) is int


def test_shared_field_is_one_option_passed_to_both():
    found = call("--seed", "7")
    assert found["first"] == found["second"] == {"seed": 7}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "half"], "expected a number such as 0.5 or 100000, got 'half'"),
        (["--n", "2.5"], "Invalid value for '--n'"),
        (["--hidden", "32,x"], "expected integers such as 32,64,32, got '32,x'"),
        (["--names", "a,,b"], "expected names such as q_proj,v_proj, got 'a,,b'"),
        (["--left-out", "1"], "--left-out"),
        (["--internal", "1"], "--internal"),
    ],
)
def test_invalid_value_exits_with_code_2(arguments, message):
    found = call(*arguments)
    assert found["code"] == 2
    assert message in found["output"]


def test_field_without_a_default_is_required():
    @dataclass
    class Strict:
        model: str = field(metadata={"help": "Which."})

    def probe(group: Annotated[dict, Fields(Strict, "One")]) -> None: ...

    app = typer.Typer()
    app.command()(expand(probe))
    assert "--model" in CliRunner().invoke(app, []).output
    assert CliRunner().invoke(app, []).exit_code == 2
    assert CliRunner().invoke(app, ["--model", "x"]).exit_code == 0


def test_field_of_an_unsupported_type_raises():
    @dataclass
    class Strange:
        table: dict[str, int] = field(default_factory=dict, metadata={"help": "Pairs."})

    def probe(group: Annotated[dict, Fields(Strange, "One")]) -> None: ...

    with pytest.raises(TypeError, match="table"):
        expand(probe)
