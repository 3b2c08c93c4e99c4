"""The loss without logits of a whole batch equals the loss of the model, and so do the gradients."""

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from runs import losses
from tiny_models import gpt2, llama
from transformers import Cohere2Config, Cohere2ForCausalLM

from qpeft import QPAConfig
from qpeft_lab import train
from qpeft_lab.data.text import IGNORED
from qpeft_lab.training import fused_loss as module
from qpeft_lab.training.fused_loss import ONE_LOGIT, fused_loss

pytestmark = pytest.mark.skipif(
    not hasattr(torch.nn.functional, "linear_cross_entropy"), reason="needs torch 2.13"
)

ADAPTERS = {
    "lora": LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM"),
    "qpa": QPAConfig(r=2, chunk_size=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    "prompt": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


@pytest.fixture(autouse=True)
def _always_worthwhile(monkeypatch):
    monkeypatch.setattr(module, "_WORTHWHILE", 0)
    monkeypatch.setattr(module, "_TOKENS", 5)


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_loss_and_gradients_are_those_of_the_model(adapter, make):
    torch.manual_seed(0)
    model = get_peft_model(make(), copy.deepcopy(ADAPTERS[adapter]))
    ids = torch.randint(0, 50, (3, 9))
    labels = ids.clone()
    labels[0, 4:] = IGNORED
    first = 0 if adapter == "prompt" else 1  # virtual tokens predict the first token
    n_scored = int((labels[:, first:] != IGNORED).sum())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    model(input_ids=ids, labels=labels).loss.backward()
    expected = [parameter.grad.clone() for parameter in trained]
    model.zero_grad()
    with fused_loss(model, 27) as loss:
        outputs = model(input_ids=ids, **ONE_LOGIT)
        assert outputs.logits.shape[1] == 1
        total = loss(outputs, labels, num_items_in_batch=n_scored)
        total.backward()

    with torch.no_grad():
        torch.testing.assert_close(total, model(input_ids=ids, labels=labels).loss)

    torch.testing.assert_close([parameter.grad for parameter in trained], expected)
    assert any(gradient.abs().max() > 0 for gradient in expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_in_half_precision_is_summed_in_full_precision(dtype):
    model = llama().to(dtype)
    ids = torch.randint(0, 50, (32, 64))
    with fused_loss(model, 27) as loss, torch.no_grad():
        total = loss(model(input_ids=ids, **ONE_LOGIT), ids)
        logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits.double(), ids[:, 1:].flatten())
    assert total.dtype is torch.float32
    assert total.item() == pytest.approx(expected.item(), rel=1e-3)


def test_head_that_is_adapted_or_followed_by_a_scale_keeps_the_loss_of_the_model():
    adapted = get_peft_model(llama(), LoraConfig(target_modules=["lm_head"]))
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    scaled = Cohere2ForCausalLM(
        Cohere2Config(**sizes, num_attention_heads=2, num_key_value_heads=1, logit_scale=0.25)
    )
    for model in (adapted, scaled):
        with fused_loss(model, 27) as loss:
            assert loss is None


def test_small_logits_are_computed_at_once(monkeypatch):
    monkeypatch.setattr(module, "_WORTHWHILE", 27 * 50 * 4 + 1)
    with fused_loss(llama(), 27) as loss:
        assert loss is None


def test_run_has_the_losses_of_the_model(settings, monkeypatch):
    fused = settings("fused", steps=4, gradient_accumulation_steps=2)
    plain = settings("plain", steps=4, gradient_accumulation_steps=2)
    calls = []
    monkeypatch.setattr(
        torch.nn.functional,
        "linear_cross_entropy",
        lambda *args, real=torch.nn.functional.linear_cross_entropy, **options: (
            calls.append(1) or real(*args, **options)
        ),
    )
    train(fused)

    assert len(calls) == 8

    monkeypatch.setattr(module, "_WORTHWHILE", 1 << 60)
    train(plain)
    assert len(calls) == 8

    values = [
        [row[name] for row in losses(Path(of.out)) for name in ("loss", "eval_loss") if name in row]
        for of in (fused, plain)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
