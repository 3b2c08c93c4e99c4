"""Two processes over gloo: DDP alone, under Trainer and under accelerate, each against one process."""

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

import qpeft

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
# --cpu would start one process alone; the script itself selects the CPU
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
ACCELERATE = (*ACCELERATE, "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no")


pytestmark = [pytest.mark.long, pytest.mark.xdist_group("distributed")]

METHODS = ("qpa", "quantum_peft", "attached")


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


def load(folder, method, *parts):
    return [load_file(folder / ".".join([method, *parts, str(rank), "safetensors"])) for rank in (0, 1)]


def check_equal_and_close(ranks, alone):
    """Ranks equal bit for bit, and the process alone up to rounding."""
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])
    for name, expected in alone.items():
        tolerance = 1e-5 * expected.abs().max().item()
        torch.testing.assert_close(ranks[0][name], expected, atol=tolerance, rtol=1e-5, msg=name)


@pytest.fixture(scope="module")
def plain(launch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    launch(TORCHRUN, "plain_ddp.py", folder)  # it also checks activation checkpointing and that FSDP1 is refused
    return folder


@pytest.mark.parametrize("options", ["plain", "unused", "static"])
def test_gradients_equal_those_of_one_process_with_the_full_batch(plain, method, options):
    ranks = load(plain, method, options)
    names = [name.removeprefix("found.") for name in ranks[0] if name.startswith("found.")]
    assert names
    largest = max(ranks[0][f"expected.{name}"].abs().max().item() for name in names)
    assert largest > 1e-3
    for name in names:
        found, expected = ranks[0][f"found.{name}"], ranks[0][f"expected.{name}"]
        assert torch.equal(found, ranks[1][f"found.{name}"])
        torch.testing.assert_close(found, expected, atol=1e-6 * expected.abs().max().item(), rtol=1e-5, msg=name)


def test_ranks_stay_bit_equal_when_gradients_accumulate(plain, method):
    first, second = load(plain, method, "accumulated")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(value.any() for value in first.values())


@pytest.fixture
def alone(script, tmp_path):
    """The training function of one of the scripts, run here, in one process."""
    yield lambda name, method: script(name).train(method, tmp_path, n_processes=1)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="module")
def by_trainer(launch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("by_trainer")
    launch(TORCHRUN, "with_trainer.py", folder)  # it also checks that reentrant checkpointing is refused
    return folder


def test_torchrun_with_trainer_equals_one_process(by_trainer, alone, method):
    ranks, expected = load(by_trainer, method), alone("with_trainer", method)
    check_equal_and_close(ranks, expected)


@pytest.fixture(scope="module")
def by_accelerate(launch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("by_accelerate")
    launch(ACCELERATE, "with_accelerate.py", folder)
    return folder


def test_accelerate_launch_equals_one_process(by_accelerate, alone, method):
    check_equal_and_close(load(by_accelerate, method), alone("with_accelerate", method))


def test_adapter_saved_by_rank_0_loads(by_trainer, by_accelerate, method, script):
    for folder in (by_trainer, by_accelerate):
        trained = load(folder, method)[0]
        model = qpeft.load(script("tiny").base(), folder / method)
        found = dict(model.named_parameters())
        names = [name for name in trained if "qpeft_generator" in name]
        assert names
        assert all(torch.equal(found[name], trained[name]) for name in names)
