"""FSDP2 in two processes over gloo, alone and under Trainer, against one process with the full batch."""

import copy

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from peft import PeftModel
from safetensors.torch import load_file

import qpeft

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
GENERATED = ("qpa", "quantum_peft", "attached")

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("distributed")]


@pytest.fixture(scope="module")
def plain(launch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp2")
    launch(TORCHRUN, "fsdp2.py", folder)  # it also checks the sharding, activation checkpointing and a refusal
    return folder


def check(ranks, expected):
    """Ranks equal bit for bit, and the process alone up to rounding."""
    assert expected
    for name, value in expected.items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        tolerance = 1e-5 * value.abs().max().item()
        torch.testing.assert_close(ranks[0][name], value, atol=tolerance, rtol=1e-5, msg=name)


@pytest.mark.parametrize("method", [*GENERATED, "qpa_with_head", "qaa", "sora", "bottleneck", "lora"])
def test_losses_and_parameters_equal_those_of_one_process(plain, method):
    ranks = [load_file(plain / f"{method}.{rank}.safetensors") for rank in (0, 1)]
    found = [{k[6:]: v for k, v in rank.items() if k.startswith("found.")} for rank in ranks]
    check(found, {k[9:]: v for k, v in ranks[0].items() if k.startswith("expected.")})


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(8)[None]).logits


@pytest.mark.parametrize("method", [*GENERATED, "qpa_with_head", "qaa", "sora", "bottleneck"])
def test_saved_adapters_load(plain, method, script):
    base, trained = script("tiny").base(), load_file(plain / f"{method}.0.safetensors")
    model = qpeft.load(copy.deepcopy(base), plain / method, is_trainable=True)
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert found
    assert all(torch.equal(p, trained[f"found.{name}"]) for name, p in found.items())
    if method in GENERATED:
        for way in ("directly", "by_save"):
            assert torch.equal(logits(qpeft.load(copy.deepcopy(base), plain / f"{method}_{way}")), logits(model))
        stock = PeftModel.from_pretrained(copy.deepcopy(base), plain / f"{method}_exported")
        torch.testing.assert_close(logits(stock), logits(model), atol=1e-6, rtol=1e-6)


@pytest.fixture(scope="module")
def by_trainer(launch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp2_trainer")
    launch(TORCHRUN, "fsdp2_trainer.py", folder)
    return folder


@pytest.mark.parametrize("method", GENERATED)
def test_trainer_equals_one_process(by_trainer, method, script, tmp_path):
    try:
        expected = script("fsdp2_trainer").train(method, tmp_path, n_processes=1)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    ranks = [load_file(by_trainer / f"{method}.{rank}.safetensors") for rank in (0, 1)]
    check(ranks, expected)
    loaded = qpeft.load(script("tiny").base(), by_trainer / method, is_trainable=True)
    for name, parameter in loaded.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter, ranks[0][name])
