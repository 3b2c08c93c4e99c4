"""torch.compile, DeepSpeed, and an accelerator: a step of a generator must not wait for all queued work."""

import copy
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model

from qpeft.errors import ConfigError


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiling_makes_no_more_graphs_than_a_stock_lora(llama, method, wrap, ids):
    """And later steps compile nothing: the hook that evaluates the generator is not compiled."""
    stock = get_peft_model(copy.deepcopy(llama), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    model = wrap(llama, method)
    graphs = []
    for each in (stock, model):
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounter()
        compiled = torch.compile(each.train(), backend=counter)
        optimizer = torch.optim.AdamW([p for p in each.parameters() if p.requires_grad], lr=1e-3)
        counts = []
        for _ in range(3):
            compiled(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            counts.append(counter.frame_count)
        assert counts[1] == counts[2]
        graphs.append(counts[-1])
    assert graphs[1] <= graphs[0]


@pytest.mark.parametrize("mark", ["ds_id", "_hp_mapping"])
def test_deepspeed_zero_is_refused_before_the_first_step(llama, method, wrap, ids, mark):
    model = wrap(llama, method)
    for parameter in model.parameters():
        setattr(parameter, mark, None)  # as DeepSpeed marks parameters
    with pytest.raises(ConfigError, match=r"shards the generator .*use FSDP2"):
        model(input_ids=ids)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        *(("qpa", one) for one in ({}, {"chunk_size": 2}, {"feature_source": "free"}, {"feature_source": "none"})),
        ("quantum_peft", {}),
        *(("quantum_peft", one) for one in ({"entangler": "signs"}, {"bits": 4}, {"family": "lie"})),
        ("quantum_peft", {"family": "kronecker"}),
    ],
    ids=str,
)
def test_forward_and_backward_read_no_tensor_value(llama, wrap, method, settings, monkeypatch):
    """On the meta device every `.item()` and every branch on a value raises."""
    generator = wrap(llama, method, **settings).base_model.generators["default"]
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # unsupported on that device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    generator = generator.to("meta")
    flat = generator()
    flat.sum().backward()
    assert flat.is_meta
    assert all(p.grad is not None for p in generator.parameters())
