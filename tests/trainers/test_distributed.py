"""Two processes over gloo, each against one process with the full batch: DDP and FSDP2, alone and
under Trainer.
"""

import copy
import os
import subprocess
import sys

import processes
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from peft import PeftModel
from processes import GENERATED, TUNERS
from safetensors.torch import load_file

import qpeft

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("distributed")]


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """The folder of what two processes wrote; they also check refusals, activation checkpointing,
    resuming, two trainings in one launch, and sums in place of means.
    """
    folders = {}

    def run(how):
        if how not in folders:
            folders[how] = tmp_path_factory.mktemp(how)
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
            command = [*TORCHRUN, processes.__file__, how, folders[how]]
            done = subprocess.run(
                command, capture_output=True, text=True, env=environment, check=False
            )
            assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
        return folders[how]

    return run


def load(folder, *parts):
    return [load_file(folder / ".".join([*parts, str(rank), "safetensors"])) for rank in (0, 1)]


def check(ranks, expected, atol=1e-5):
    """Ranks equal bit for bit, and the process alone up to rounding."""
    assert expected
    for name, value in expected.items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(
            ranks[0][name], value, atol=atol * value.abs().max().item(), rtol=1e-5, msg=name
        )


def check_parts(ranks, **tolerance):
    found = [{k[6:]: v for k, v in rank.items() if k.startswith("found.")} for rank in ranks]
    expected = {k[9:]: v for k, v in ranks[0].items() if k.startswith("expected.")}
    assert max(value.abs().max() for value in expected.values()) > 1e-3
    check(found, expected, **tolerance)


@pytest.mark.parametrize("method", GENERATED)
@pytest.mark.parametrize("options", ["", "find_unused_parameters", "static_graph"])
def test_gradients_under_ddp_equal_those_of_one_process(launched, method, options):
    check_parts(load(launched("ddp"), method, options), atol=1e-6)


@pytest.mark.parametrize("method", [*GENERATED, *TUNERS])
def test_training_under_fsdp2_equals_one_process(launched, method):
    check_parts(load(launched("fsdp2"), method))


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(8)[None]).logits


@pytest.mark.parametrize("method", [*GENERATED, *TUNERS])
def test_adapters_saved_under_fsdp2_load(launched, method):
    folder = launched("fsdp2")
    base = processes.base()
    model = qpeft.load(copy.deepcopy(base), folder / method, is_trainable=True)
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    trained = load(folder, method)[0]

    assert found
    assert all(torch.equal(p, trained[f"found.{name}"]) for name, p in found.items())

    if method in (*GENERATED, "sora"):
        for way in ("directly", "by_save"):
            assert torch.equal(
                logits(qpeft.load(copy.deepcopy(base), folder / f"{method}_{way}")), logits(model)
            )
        stock = PeftModel.from_pretrained(copy.deepcopy(base), folder / f"{method}_exported")
        torch.testing.assert_close(logits(stock), logits(model), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("method", GENERATED)
@pytest.mark.parametrize("how", ["ddp", "trainer_fsdp2"])
def test_trainer_in_two_processes_equals_one_and_its_adapter_loads(launched, method, how, tmp_path):
    folder = launched(how)
    try:
        expected = processes.train_with_trainer(method, tmp_path, n_processes=1)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    ranks = load(folder, method)
    check(ranks, expected)
    loaded = qpeft.load(processes.base(), folder / method, is_trainable=True)
    found = {name: p for name, p in loaded.named_parameters() if p.requires_grad}

    assert found
    assert all(torch.equal(p, ranks[0][name]) for name, p in found.items())
