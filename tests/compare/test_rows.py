"""One rows.jsonl per study: what is written is read, a torn last line is ignored, later lines replace earlier ones."""

import json
import math

import pytest

from qpeft.errors import CheckpointError
from qpeft_lab.compare.rows import RowFile, read_rows
from qpeft_lab.files import json_line


def row(name="seed0", **fields):
    identity = {"study": "study", "method": "lora", "hash": "hash", "name": name, "role": "main", "seed": 0}
    return identity | {"status": "success", **fields}


def names(folder):
    return [one["name"] for one in read_rows(folder).values()]


def test_appended_rows_are_read_again(tmp_path):
    file = RowFile(tmp_path)
    rows = [row("seed0", test_loss=0.1 + 0.2, new=[1.5]), row("cost")]
    for one in rows:
        file.append(one)
    assert list(read_rows(tmp_path).values()) == list(file.rows.values()) == rows
    file.append(row("seed0", status="failed"))  # a later line replaces the earlier one
    assert [one["status"] for one in read_rows(tmp_path).values()] == ["failed", "success"]


@pytest.mark.parametrize("length", [1, 40, -1])
def test_incomplete_last_line_is_ignored_and_removed_before_the_next_append(tmp_path, length):
    (tmp_path / "rows.jsonl").write_text(json_line(row("seed0")) + json_line(row("seed1"))[:length])
    assert names(tmp_path) == ["seed0"]
    RowFile(tmp_path).append(row("seed2"))
    assert names(tmp_path) == ["seed0", "seed2"]


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", json.dumps(row(seed="0")), json.dumps({**row(), "status": None}), "[" * 10**5]
)
def test_damaged_line_is_named(tmp_path, line):
    (tmp_path / "rows.jsonl").write_text(json_line(row("seed0")) + line + "\n" + json_line(row("seed1")))
    with pytest.raises(CheckpointError, match=r"rows\.jsonl is damaged in line 2 .*delete the line, and its cell runs"):
        read_rows(tmp_path)


def test_numbers_that_are_not_finite_are_null(tmp_path):
    RowFile(tmp_path).append(row(test_loss=math.nan, curve=[[0, math.inf, 0.0]], n=10**400))
    (found,) = read_rows(tmp_path).values()
    assert (found["test_loss"], found["curve"], found["n"]) == (None, [[0, None, 0.0]], 10**400)
