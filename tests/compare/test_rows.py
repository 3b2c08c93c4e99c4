"""One rows.jsonl per study: what is written is read, a torn last line is ignored, later lines replace earlier ones."""

import json
import math

import pytest

from qpeft.compare.rows import Capacity, MethodConfig, Quality, Row, RowFile, read_rows, row_from_json
from qpeft.errors import CheckpointError


def row(name="seed0", **fields):
    identity = {"cell_id": f"study/lora/hash/{name}", "method_config": MethodConfig(hash="hash")}
    return Row(**identity, study="study", method="lora", role="main", seed=0, **fields)


def stored(*rows):
    return "".join(json.dumps(one.to_json()) + "\n" for one in rows)


def test_appended_rows_are_read_again(tmp_path):
    file = RowFile(tmp_path)
    rows = [row("seed0", status="success", quality=Quality(test_loss=0.1 + 0.2)), row("cost")]
    for one in rows:
        file.append(one)
    assert list(read_rows(tmp_path).values()) == list(file.rows.values()) == rows


def test_later_line_replaces_earlier_line_of_the_same_cell(tmp_path):
    file = RowFile(tmp_path)
    file.append(row(status="failed"))
    file.append(row(status="success"))
    assert [one.status for one in read_rows(tmp_path).values()] == ["success"]


@pytest.mark.parametrize("length", [1, 40, -1])
def test_incomplete_last_line_is_ignored_and_removed_before_the_next_append(tmp_path, length):
    (tmp_path / "rows.jsonl").write_text(stored(row("seed0")) + stored(row("seed1"))[:length])
    assert [one.name for one in read_rows(tmp_path).values()] == ["seed0"]
    RowFile(tmp_path).append(row("seed2"))
    assert [one.name for one in read_rows(tmp_path).values()] == ["seed0", "seed2"]


def test_damaged_line_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text(stored(row("seed0")) + "{\n" + stored(row("seed1")))
    with pytest.raises(CheckpointError, match=r"rows\.jsonl is damaged in line 2 .*delete the line, and its cell runs"):
        read_rows(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "has schema 2, this qpeft reads 1"),
        ({"schema": "1"}, "has schema '1', this qpeft reads 1"),
        ({"train": 5}, "train: "),
        ({"quality": {"test_loss": "low"}}, "quality.test_loss"),
        ({"train": {"curve": [[1, None, 0.5]]}}, "train.curve.0: Value error, a point is"),
        ({"train": {"curve": [[1, None, "low", 0.1]]}}, "train.curve.0: Value error, a point is"),
        ({"cell_id": "study/qpa/hash/seed0"}, "is not that of its study, method and hash"),
        ({"method": "qpa"}, "is not that of its study, method and hash"),
    ],
)
def test_row_that_cannot_be_read_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        row_from_json(row().to_json() | change)


def test_row_without_a_part_is_refused():
    values = row().to_json()
    del values["capacity"]
    with pytest.raises(ValueError, match="lacks capacity"):
        row_from_json(values)


def test_files_of_release_0_1_are_read_and_replaced_by_lines(tmp_path):
    folder = tmp_path / "rows" / "study" / "lora" / "hash"
    folder.mkdir(parents=True)
    for name in ("seed0", "seed1"):
        (folder / f"{name}.json").write_text(stored(row(name, status="failed")))
    RowFile(tmp_path).append(row("seed1", status="success"))
    assert {one.name: one.status for one in read_rows(tmp_path).values()} == {"seed0": "failed", "seed1": "success"}


def test_values_keep_their_types_and_unknown_fields_stay():
    values = row().to_json() | {"new": 1, "quality": {"test_loss": 3, "valid_loss": 3.0, "newer": [1.5]}}
    again = row_from_json(values).to_json()
    assert again == values
    assert json.dumps(again, sort_keys=True) == json.dumps(values, sort_keys=True)


def test_nan_is_null_with_a_reason():
    values = row(quality=Quality(test_loss=math.nan), capacity=Capacity(effective_rank=math.inf)).to_json()
    assert values["quality"] == {"test_loss": None}
    assert values["null_reasons"] == dict.fromkeys(
        ("quality.test_loss", "capacity.effective_rank"), "not a finite number"
    )


def test_row_file_of_release_0_1_in_the_place_of_another_cell_is_refused(tmp_path):
    folder = tmp_path / "rows" / "study" / "qpa" / "hash"
    folder.mkdir(parents=True)
    (folder / "seed0.json").write_text(stored(row()))
    with pytest.raises(CheckpointError, match="it is the row of another cell, study/lora/hash/seed0"):
        read_rows(tmp_path)
