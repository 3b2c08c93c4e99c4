"""Damaged files of every kind give a correct load or a clear error; planted defects are detected."""

import json
import os
import random
import sys
import tempfile
import time
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


def test_300_mutated_files_load_correctly_or_are_refused(bad_files, world):
    rows = list(bad_files.run(world, 1, range(300)))
    loads = [(row, load) for row in rows for load in row["loads"]]
    assert not [(row, load) for row, load in loads if load["outcome"] not in bad_files.RIGHT]
    assert {row["kind"] for row in rows} == {"bytes", "tree", "tensors", "json", "yaml", "rows"}
    assert len({row["good"] for row in rows}) > 15
    outcomes = Counter(load["outcome"] for _, load in loads)
    assert outcomes["refused"] > 100
    assert outcomes["correct"] > 30


def found(bad_files, world, name, change, way="qpeft.load"):
    """The outcome of a load of `name` after `change(copy)`, in a process of its own."""
    from bad_files_mutations import Mutation

    def work(report):
        with tempfile.TemporaryDirectory() as place:
            copy = bad_files._copied(name, world.goods[name], Path(place))
            change(copy)
            report(bad_files._load(world, name, way, copy, Mutation("none", "", "")))

    reports, ended = bad_files._in_child(work)
    return reports[-1]["outcome"] if reports else ended


def remove_tensors(copy):
    from bad_files_mutations import join, split

    file = copy / "adapter_model.safetensors"
    header, payload = split(file.read_bytes())
    file.write_bytes(join({name + "x" if "lora_B" in name else name: entry for name, entry in header.items()}, payload))


def test_loader_that_ignores_missing_tensors_is_detected(bad_files, world, monkeypatch):
    assert found(bad_files, world, "exported-qpa", remove_tensors) == "refused"
    for name in ("check_whole", "check_seal", "check_acts"):
        monkeypatch.setattr(f"qpeft.core.checkpoint.{name}", lambda *_: None)
    assert found(bad_files, world, "exported-qpa", remove_tensors) == "base model returned"


def test_loader_with_other_values_is_detected(bad_files, world, monkeypatch):
    from qpeft.core import checkpoint

    load = checkpoint.PeftModel.from_pretrained

    def shifted(*args, **kwargs):
        model = load(*args, **kwargs)
        next(p for n, p in model.named_parameters() if "lora_A" in n).data.add_(0.5)
        return model

    assert found(bad_files, world, "exported-qpa", lambda copy: None) == "correct"
    monkeypatch.setattr(checkpoint.PeftModel, "from_pretrained", shifted)
    assert found(bad_files, world, "exported-qpa", lambda copy: None) == "other values"


@pytest.mark.parametrize(
    ("raised", "outcome"),
    [
        (AttributeError("'int' object has no attribute 'get'"), "wrong error"),
        (MemoryError(), "memory"),
        (ValueError("x" * 10_000), "unclear message"),
    ],
)
def test_uninformative_errors_are_detected(bad_files, world, monkeypatch, raised, outcome):
    def fail(*_, **__):
        raise raised

    monkeypatch.setattr("qpeft.load", fail)
    assert found(bad_files, world, "adapter-qpa", lambda copy: None) == outcome


def test_crash_and_hang_are_detected(bad_files, monkeypatch):
    monkeypatch.setattr(bad_files, "SECONDS", 0.5)
    assert bad_files._in_child(lambda report: os.abort())[1].startswith("crash")
    assert bad_files._in_child(lambda report: time.sleep(60))[1] == "hang"


def test_mutations_are_the_same_for_the_same_seed(bad_files, world, tmp_path):
    from bad_files_mutations import mutate

    def damaged(name):
        inside = tmp_path / name
        inside.mkdir()
        copy = bad_files._copied("adapter-sora", world.goods["adapter-sora"], inside)
        mutation = mutate(copy, world.goods["adapter-sora"].path, Path("marker"), random.Random(5))
        return mutation, json.dumps([p.read_bytes().hex() for p in sorted(copy.rglob("*")) if p.is_file()])

    assert damaged("one") == damaged("other")
