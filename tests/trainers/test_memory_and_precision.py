"""Trainer with activation checkpointing and bfloat16; torch.compile; training that shards the generator."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from qpeft.errors import ConfigError


def generator_of(model):
    return model.base_model.generators["default"]


def parameters_of(model):
    return torch.cat([p.detach().flatten() for p in generator_of(model).parameters()])


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_training_equals_uncompiled(llama, method, wrap, adapters, ids):
    plain = wrap(copy.deepcopy(llama), method)
    adapters.train(plain, ids, steps=3, lr=1e-3)
    model = wrap(llama, method).train()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.AdamW(generator_of(model).parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        compiled(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    torch.testing.assert_close(adapters.logits(model.eval(), ids), adapters.logits(plain, ids), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(parameters_of(model), parameters_of(plain), atol=1e-5, rtol=1e-3)


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
