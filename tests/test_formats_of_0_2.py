"""What version 0.2 wrote still loads: adapters of every method, a run, a run that was killed, a
study.

`formats/0.2.tar.xz` was written by the commit before the first of the next version. `llama` is the
base of the adapters, `base` that of the runs and the study; `logits.safetensors` has the last
logits (2, 50) of each adapter for the ids `IDS`.
"""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from folders import edit_config
from runs import losses
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from variants import TUNERS

import qpeft
from qpeft.errors import BaseModelWarning, CheckpointError
from qpeft_lab import RunSettings, train

pytestmark = [
    pytest.mark.filterwarnings("ignore:SoRA"),  # no callback here
    pytest.mark.xdist_group("formats of 0.2"),
]
ARCHIVE = Path(__file__).parent / "formats" / "0.2.tar.xz"
IDS = 2 * torch.arange(18).view(2, 9)
RUN = {
    "model": "base",
    "data": "tale.txt",
    "method": "qpa",
    "method_settings": {"r": 4, "budget": 0.5},
    "steps": 3,
    "batch_size": 2,
    "seq_len": 32,
    "eval_blocks": 2,
    "save_every": 1,
}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "0.2"


@pytest.fixture
def written(unpacked, monkeypatch):
    """The folder of everything, which is the current one: all paths in it are relative."""
    monkeypatch.chdir(unpacked)
    return unpacked


@pytest.mark.filterwarnings("ignore:n_layers=1 has no effect:qpeft.errors.QpeftWarning")
@pytest.mark.parametrize("name", TUNERS)
def test_adapter_of_0_2_has_its_logits(written, name):
    """Initial values are drawn again, so these are tested, too."""
    folder = name.replace(", ", "-").replace(" ", "_")
    model = qpeft.load(LlamaForCausalLM.from_pretrained("llama"), Path("adapters") / folder)
    with torch.no_grad():
        logits = model(input_ids=IDS).logits[:, -1]
    expected = load_file("logits.safetensors")[folder]

    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_export_of_0_2_loads(written):
    """Its record has no config and no list of embeddings."""
    qpeft.load(AutoModelForCausalLM.from_pretrained("base"), "run/exported")


def test_order_of_0_2_that_may_be_edited_is_said(written, tmp_path):
    """Before 0.3 no hash contained the order."""
    folder = shutil.copytree("adapters/qpa", tmp_path / "edited")
    table = json.loads((folder / "adapter_config.json").read_text())["generated"]
    edit_config(folder, generated=table[::-1])
    with pytest.warns(BaseModelWarning, match="order than this base model's.*restore it"):
        qpeft.load(LlamaForCausalLM.from_pretrained("llama"), folder)


def test_other_initial_values_than_those_of_0_2_are_detected(written, monkeypatch):
    monkeypatch.setattr("qpeft.core.seeded_init.math.pi", 3.0)  # of the Box-Muller transform
    with pytest.raises((AssertionError, CheckpointError)):
        test_adapter_of_0_2_has_its_logits(written, "quanta, mpo")


def test_finished_run_of_0_2_is_finished(written):
    result = train(RunSettings(out="run", **RUN))
    assert result.already_finished
    assert result.after.loss == json.loads(Path("run/result.json").read_text())["after"]["loss"]


def test_killed_run_of_0_2_resumes(written):
    train(RunSettings(out="killed", **RUN))
    ours = losses(written / "killed")
    theirs = losses(written / "run")
    # evaluations in between are chosen anew
    shared = [row for row in theirs if "eval_loss" not in row or row["step"] in (0, RUN["steps"])]
    ours = [row for row in ours if "eval_loss" not in row or row["step"] in (0, RUN["steps"])]
    for mine, other in zip(ours, shared, strict=True):
        assert mine == pytest.approx(other, rel=1e-4)


def test_study_of_0_2_is_reported_and_not_run_again(written, qpeft_cli):
    before = (written / "study" / "rows.jsonl").read_bytes()
    report = json.loads(qpeft_cli("compare report study --json", code=0).stdout)
    assert {method["key"] for method in report["methods"]} == {"lora", "quantum_peft"}
    qpeft_cli("compare run study.yaml --out study", code=0)
    assert (written / "study" / "rows.jsonl").read_bytes() == before
