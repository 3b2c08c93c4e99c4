"""Bad files: a correct load or a clear error, for every kind of file and of damage; planted defects are seen."""

import json
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def bad_files():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import bad_files

        yield bad_files
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def world(bad_files, tmp_path_factory):
    torch.set_num_threads(1)
    return bad_files.prepare(tmp_path_factory.mktemp("bad-files") / "made")


def wrong(bad_files, rows):
    return [(row, load) for row in rows for load in row["loads"] if load["outcome"] not in bad_files.RIGHT]


def test_three_hundred_mutations(bad_files, world):
    rows = list(bad_files.run(world, 1, range(300)))
    assert not wrong(bad_files, rows)
    assert {row["kind"] for row in rows} == {"bytes", "tree", "tensors", "json", "yaml", "rows"}
    assert len({row["good"] for row in rows}) > 15
    outcomes = Counter(load["outcome"] for row in rows for load in row["loads"])
    assert outcomes["refused"] > 100
    assert outcomes["correct"] > 30


def found(bad_files, world, name, change, way="qpeft.load"):
    """What the harness says of a load of `name` after `change(copy)`, in a process of its own."""
    from bad_files_mutate import Mutation

    def work(report):
        import tempfile

        with tempfile.TemporaryDirectory() as place:
            copy = bad_files._copied(name, world.goods[name], Path(place))
            change(copy)
            report(bad_files._load(world, name, way, copy, Mutation("none", "", "")))

    reports, ended = bad_files._in_child(work)
    return reports[-1]["outcome"] if reports else ended


def nothing(copy):
    pass


def remove_tensors(copy):
    from bad_files_tensors import join, split

    file = copy / "adapter_model.safetensors"
    header, payload = split(file.read_bytes())
    file.write_bytes(join({name + "x" if "lora_B" in name else name: entry for name, entry in header.items()}, payload))


def deaf(monkeypatch):
    """A loader that trusts PEFT, which says nothing of missing tensors."""
    for name in ("check_whole", "check_seal", "check_acts"):
        monkeypatch.setattr(f"qpeft.core.checkpoint.{name}", lambda *_: None)


def test_a_loader_that_ignores_missing_tensors_is_caught(bad_files, world, monkeypatch):
    assert found(bad_files, world, "exported-qpa", remove_tensors) == "refused"
    deaf(monkeypatch)
    assert found(bad_files, world, "exported-qpa", remove_tensors) == "silently the base model"


def test_a_loader_that_takes_other_numbers_is_caught(bad_files, world, monkeypatch):
    from qpeft.core import checkpoint

    load = checkpoint.PeftModel.from_pretrained

    def shifted(*args, **kwargs):
        model = load(*args, **kwargs)
        next(p for n, p in model.named_parameters() if "lora_A" in n).data.add_(0.5)
        return model

    assert found(bad_files, world, "exported-qpa", nothing) == "correct"
    monkeypatch.setattr(checkpoint.PeftModel, "from_pretrained", shifted)
    assert found(bad_files, world, "exported-qpa", nothing) == "other numbers"


@pytest.mark.parametrize(
    ("raised", "outcome"),
    [
        (AttributeError("'int' object has no attribute 'get'"), "wrong error"),
        (MemoryError(), "memory"),
        (ValueError("x" * 10_000), "unclear message"),
    ],
)
def test_errors_that_tell_nothing_are_caught(bad_files, world, monkeypatch, raised, outcome):
    def fail(*_, **__):
        raise raised

    monkeypatch.setattr("qpeft.load", fail)
    assert found(bad_files, world, "adapter-qpa", nothing) == outcome


def test_a_crash_and_a_hang_are_caught(bad_files, monkeypatch):
    import os
    import time

    monkeypatch.setattr(bad_files, "SECONDS", 0.5)
    assert bad_files._in_child(lambda report: os.abort())[1].startswith("crash")
    assert bad_files._in_child(lambda report: time.sleep(60))[1] == "hang"


def test_mutations_are_the_same_for_the_same_seed(bad_files, world, tmp_path):
    from bad_files_mutate import mutate

    def spoiled(name):
        inside = tmp_path / name
        inside.mkdir()
        copy = bad_files._copied("adapter-sora", world.goods["adapter-sora"], inside)
        mutation = mutate(copy, world.goods["adapter-sora"].path, Path("marker"), random.Random(5))
        return mutation, json.dumps([p.read_bytes().hex() for p in sorted(copy.rglob("*")) if p.is_file()])

    assert spoiled("one") == spoiled("other")
