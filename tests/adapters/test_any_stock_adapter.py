"""The boundary fills any stock adapter's tensors: IA3's ParameterDict and prefix tuning's embedding as well as LoRA."""

import copy

import pytest
import torch
from peft import IA3Config, PrefixTuningConfig, get_peft_model
from peft.tuners.ia3 import IA3Layer

from qpeft.adapters.binding import Binding, Slot
from qpeft.adapters.slots import find_slots
from qpeft.generators.qpa import QPAGenerator
from qpeft.generators.seeded_start import SeededStart
from qpeft.generators.settings import QPAGeneratorConfig

HOSTS = {
    "ia3": IA3Config(target_modules=["c_attn", "c_fc"], feedforward_modules=["c_fc"], fan_in_fan_out=True),
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
}


def slots_of(model, host):
    if host == "ia3":
        return [slot for slot, _ in find_slots(model.base_model.model, "default", IA3Layer)]
    encoder = model.prompt_encoder["default"].embedding
    return [Slot(encoder, "weight", "prompt_encoder.embedding.weight", encoder.weight.shape, encoder.weight.dtype)]


@pytest.mark.parametrize("host", HOSTS)
def test_exact_start_and_a_gradient_for_every_number(gpt2, ids, adapters, host):
    model = get_peft_model(gpt2, HOSTS[host]).eval()
    stock = adapters.logits(copy.deepcopy(model), ids)
    slots = slots_of(model, host)
    assert sum(s.shape.numel() for s in slots) == model.get_nb_trainable_parameters()[0]
    initial = torch.cat([s.owner._parameters[s.name].detach().flatten() for s in slots])
    config = QPAGeneratorConfig(chunk_size=16, hidden=(3,), n_layers=2)
    binding = Binding(QPAGenerator(config, initial, SeededStart(0)), slots)
    logits = model(input_ids=ids).logits
    assert torch.equal(logits, stock)
    logits.square().mean().backward()
    assert all(p.grad.norm() > 0 for p in binding.generator.parameters())
