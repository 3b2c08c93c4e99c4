"""Damaged files of every kind give a correct load or a clear error; planted defects are detected."""

import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def bad_files(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(request.config.rootpath / "benchmarks")
        import bad_files

        yield bad_files


@pytest.fixture(scope="module")
def world(bad_files, tmp_path_factory):
    torch.set_num_threads(1)
    return bad_files.prepare(tmp_path_factory.mktemp("bad-files") / "made")


def test_200_damaged_files_load_correctly_or_are_refused(bad_files, world):
    rows = [bad_files.mutated(world, f"1 {number}") for number in range(200)]
    loads = [(row, load) for row in rows for load in row["loads"]]
    assert not [(row, load) for row, load in loads if load["outcome"] not in bad_files.RIGHT]
    assert {row["good"] for row in rows} == {*world.goods}
    outcomes = Counter(load["outcome"] for _, load in loads)
    assert outcomes["refused"] > 100
    assert outcomes["correct"] > 20


def found(bad_files, world, name, change=lambda copy: None, way="qpeft.load"):
    """The outcome of a load of `name` after `change(copy)`, in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        copy = bad_files.copied(world, name, Path(place))
        change(copy)
        asked = bad_files.Load(world, name, copy)
        (report,), _ = bad_files.in_child(lambda report: report(bad_files.outcome_of(asked, way)))
    return report["outcome"]


def rename_tensors(copy):
    file = copy / "adapter_model.safetensors"
    save_file({name.replace("lora_B", "lora_Bx"): tensor for name, tensor in load_file(file).items()}, file)


def test_loader_that_ignores_missing_tensors_is_detected(bad_files, world, monkeypatch):
    assert found(bad_files, world, "exported-qpa", rename_tensors) == "refused"
    for name in ("check_whole", "check_seal"):
        monkeypatch.setattr(f"qpeft.core.checkpoint.{name}", lambda *_: None)
    assert found(bad_files, world, "exported-qpa", rename_tensors) == "base model returned"


def test_loader_with_other_values_is_detected(bad_files, world, monkeypatch):
    from qpeft.core import checkpoint

    load = checkpoint.PeftModel.from_pretrained

    def shifted(*args, **kwargs):
        model = load(*args, **kwargs)
        next(p for n, p in model.named_parameters() if "lora_A" in n).data.add_(0.5)
        return model

    assert found(bad_files, world, "exported-qpa") == "correct"
    monkeypatch.setattr(checkpoint.PeftModel, "from_pretrained", shifted)
    assert found(bad_files, world, "exported-qpa") == "other values"


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
    assert found(bad_files, world, "adapter-qpa") == outcome


def test_crash_and_hang_are_detected(bad_files, monkeypatch):
    monkeypatch.setattr(bad_files, "SECONDS", 0.5)
    assert bad_files.in_child(lambda report: os.abort())[1].startswith("crash")
    assert bad_files.in_child(lambda report: time.sleep(60))[1] == "hang"


def test_damage_is_the_same_for_the_same_seed(bad_files, world, tmp_path):
    def damaged(name):
        (tmp_path / name).mkdir()
        copy = bad_files.copied(world, "adapter-sora", tmp_path / name)
        how = bad_files.damage(copy, world.goods["adapter-sora"], Path("marker"), random.Random(5))
        return how, [path.read_bytes() for path in sorted(copy.rglob("*")) if path.is_file()]

    assert damaged("one") == damaged("other")
