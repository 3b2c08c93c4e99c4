"""Row T of issue 67: one thread evaluates a model while another one trains it."""

import copy
import sys
from threading import Event, Thread

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict, peft_model
from torch import nn
from variants import VARIANTS, Variant, kinds_first, move

import qpeft
from qpeft.core.binding import Binding
from qpeft.core.slots import Slot

pytestmark = pytest.mark.filterwarnings("ignore:SoRA")  # no callback here
LORA = Variant("lora", LoraConfig, {"target_modules": "all-linear"})


@pytest.fixture
def frequent_switches():
    """A thread runs for a hundredth of the usual time before the next one."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(usual / 100)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.parametrize("name", ["lora", *kinds_first(VARIANTS)])
def test_t_training_is_not_changed_by_evaluations_in_another_thread(
    llama, ids, adapters, name, frequent_switches
):
    models = []
    for _ in range(2):
        torch.manual_seed(0)  # of PEFT's own initial values
        models.append(move({"lora": LORA, **VARIANTS}[name].adapt(copy.deepcopy(llama))))
    alone, watched = models
    ended = Event()

    def evaluate():
        while not ended.is_set():
            adapters.logits(watched, ids)

    thread = Thread(target=evaluate)  # whose exceptions are warnings, and so errors
    thread.start()
    adapters.train(watched, ids, steps=5)
    ended.set()
    thread.join()
    adapters.train(alone, ids, steps=5)
    for mine, expected in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(mine, expected)

    assert torch.equal(adapters.logits(watched, ids), adapters.logits(alone, ids))


@pytest.mark.parametrize("name", ["attached to a prefix", "attached to lora", "qpa"])
@pytest.mark.parametrize("save", [qpeft.save, lambda model, folder: model.save_pretrained(folder)])
def test_t_model_stays_itself_while_it_is_saved(
    llama, ids, adapters, name, save, tmp_path, monkeypatch
):
    """Another thread calls it; a prefix that PEFT saves by another config was left out."""
    model = move(VARIANTS[name].adapt(llama))
    expected = adapters.logits(model, ids)
    configs = dict(model.peft_config)
    seen = []

    def in_the_middle(*args, **kwargs):
        seen.append(adapters.logits(model, ids))
        assert model.peft_config == configs
        return get_peft_model_state_dict(*args, **kwargs)

    monkeypatch.setattr(peft_model, "get_peft_model_state_dict", in_the_middle)
    save(model, str(tmp_path))
    assert seen
    assert all(torch.equal(one, expected) for one in seen)


class Slow(nn.Module):
    """A generator of two values; its evaluation in another thread ends when it is allowed to."""

    is_coupled = False

    def __init__(self):
        super().__init__()
        self.angles = nn.Parameter(torch.tensor([0.5, -1.0]))
        self.began, self.may_end = Event(), Event()

    def forward(self):
        flat = self.angles.sin()
        if self.angles.grad is None and self.angles._version:
            self.began.set()
            self.may_end.wait(0.5)  # the other thread cannot go on if it waits for this one
        return flat


def test_t_slow_evaluation_does_not_replace_a_later_one():
    """What QPA did: an evaluation that began before a step placed its values behind it."""
    generator = Slow()
    host = nn.Linear(2, 1, bias=False)
    binding = Binding(generator, [Slot(host, "weight", "", torch.Size([1, 2]), torch.float32)])
    with torch.no_grad():
        generator.angles.add_(0.25)
    other = Thread(target=binding.refresh)
    other.start()
    generator.began.wait()
    generator.angles.grad = torch.ones(2)
    torch.optim.SGD(generator.parameters(), lr=1.0).step()
    binding.refresh()
    generator.may_end.set()
    other.join()

    assert torch.equal(host.weight[0], generator.angles.sin())
