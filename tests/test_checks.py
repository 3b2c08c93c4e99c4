"""Settings are checked from the metadata of their own fields."""

from dataclasses import dataclass, field

import pytest

from qpeft.checks import check_fields
from qpeft.errors import ConfigError


def described(**rules):
    return {"help": "A field.", **rules}


@dataclass
class Settings:
    steps: int = field(default=2, metadata=described(at_least=1, at_most=9))
    rate: "float | None" = field(default=0.5, metadata=described(above=0, below=1))
    kind: str = field(default="exp", metadata=described(choices=("exp", "cayley")))
    folds: bool = field(default=True, metadata=described())
    inner: int = -1  # no help text: not a setting


@pytest.mark.parametrize(
    "values", [{}, {"steps": 1}, {"steps": 9}, {"rate": None}, {"rate": 0.999}, {"kind": "cayley"}]
)
def test_allowed_values_pass(values):
    check_fields(Settings(**values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 10}, "steps must be at most 9, got 10"),
        ({"steps": 2.0}, r"steps must be a whole number, got 2\.0"),
        ({"steps": True}, "steps must be a whole number, got True"),
        ({"steps": None}, "steps must be a whole number, got None"),
        ({"steps": 10**400}, "steps must be at most 9"),
        ({"rate": -(10**400)}, "rate must be above 0"),
        ({"rate": 0}, "rate must be above 0, got 0"),
        ({"rate": 1.0}, r"rate must be below 1, got 1\.0"),
        ({"rate": float("nan")}, "rate must be a finite number, got nan"),
        ({"rate": "0.5"}, "rate must be a finite number, got '0.5'"),
        ({"kind": "expp"}, "unknown kind 'expp'; did you mean 'exp'"),
        ({"folds": 1}, "folds must be True or False, got 1"),
    ],
)
def test_other_values_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        check_fields(Settings(**values))


def test_only_the_owners_fields_are_checked():
    @dataclass
    class More(Settings):
        extra: int = field(default=0, metadata=described(at_least=1))

    check_fields(More(), Settings)
    check_fields(More(), skip=("extra",))
    with pytest.raises(ConfigError, match="extra must be at least 1"):
        check_fields(More())
