"""torch.compile, DeepSpeed, and an accelerator: a step of a generator must not wait for all queued
work.
"""

from contextlib import nullcontext

import pytest
import torch
from variants import VARIANTS

from qpeft.errors import ConfigError


@pytest.mark.parametrize("mark", ["ds_id", "_hp_mapping"])
def test_deepspeed_zero_is_refused_before_the_first_step(llama, variant, ids, mark):
    model = variant.adapt(llama)
    for parameter in model.parameters():
        setattr(parameter, mark, None)  # as DeepSpeed marks parameters
    with pytest.raises(ConfigError, match=r"shards the generator .*use FSDP2"):
        model(input_ids=ids)


SETTINGS = {
    "qpa with a network": [
        {},
        {"chunk_size": 2},
        {"feature_source": "free"},
        {"feature_source": "none"},
    ],
    # not family lie, whose core is computed on the CPU: not every accelerator has float64
    "quantum_peft": [{}, {"entangler": "signs"}, {"bits": 4}],
}


@pytest.mark.parametrize(
    "name, settings", [(name, one) for name in SETTINGS for one in SETTINGS[name]], ids=str
)
def test_forward_and_backward_read_no_tensor_value(llama, name, settings, monkeypatch):
    """On the meta device every `.item()` and every branch on a value raises."""
    generator = VARIANTS[name].adapt(llama, **settings).base_model.generators["default"]
    # unsupported on that device
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    generator = generator.to("meta")
    flat = generator()
    flat.sum().backward()

    assert flat.is_meta
    assert all(p.grad is not None for p in generator.parameters())
