"""On trained weights: a GPT-2 that sorts letters, and a Llama trained on stories. Skipped where they are absent."""

import itertools

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import qpeft
from qpeft.training import TrainSettings, train

LETTERS = torch.tensor(list(itertools.product(range(3), repeat=6)))  # (729, 6)


def sorting_batch(letters, descending=False):
    """Ids and labels (B, 11): six letters, then the same letters sorted, as far as the context goes."""
    target = letters.sort(dim=1, descending=descending).values
    prompt = torch.full_like(letters, -100)
    return torch.cat([letters, target], dim=1)[:, :11], torch.cat([prompt, target], dim=1)[:, :11]


def accuracy(model, descending=False):
    """Share of all 729 inputs that greedy decoding sorts without a mistake."""
    ids = LETTERS
    with torch.no_grad():
        for _ in range(6):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    return (ids[:, 6:] == LETTERS.sort(dim=1, descending=descending).values).all(dim=1).float().mean().item()


@pytest.mark.long
def test_qpa_on_a_sorting_model(shared, tmp_path):
    folder = shared / "models" / "gpt_nano_sort"
    base = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert accuracy(base) == 1.0
    config = qpeft.QPAConfig(r=4, target_modules=["c_attn", "c_fc", "c_proj"], budget=0.5, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    assert accuracy(model.eval()) == 1.0
    optimiser = torch.optim.AdamW(qpeft.param_groups(model, lr=2e-3))
    ids, labels = sorting_batch(LETTERS[::5], descending=True)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    report = qpeft.export(model.eval(), tmp_path / "exported")
    assert report.max_logit_difference <= 1e-6
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "exported").eval()
    assert torch.equal(stock(input_ids=ids).logits, model(input_ids=ids).logits)
    with model.disable_adapter():
        assert accuracy(model) == 1.0


@pytest.mark.long
def test_run_on_a_story_model(shared, tmp_path):
    """From a text file to an exported adapter that is better than the base on held-out text."""
    settings = TrainSettings(
        model=str(shared / "models" / "stories260K"),
        data=str(shared / "data" / "grimm" / "GrimmsFairyTales.txt"),
        out=str(tmp_path / "run"),
        method_settings={"r": 4, "lora_alpha": 8},
        steps=40,
        lr=2e-3,
        batch_size=4,
        seq_len=128,
        eval_every=40,
        eval_blocks=32,
    )
    result = train(settings)
    assert result.trainable == 11_558
    assert result.after.loss < result.before.loss - 0.2
    stock = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(settings.model), tmp_path / "run" / "exported"
    )
    live = qpeft.load(AutoModelForCausalLM.from_pretrained(settings.model), tmp_path / "run" / "adapter")
    ids = torch.arange(24).view(2, 12)
    torch.testing.assert_close(stock(input_ids=ids).logits, live(input_ids=ids).logits, atol=1e-6, rtol=0)
