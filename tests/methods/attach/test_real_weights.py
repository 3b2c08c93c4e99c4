"""QPA over stock adapters of a Llama that tells stories, on Grimm's tales. Skipped where the weights are absent."""

import copy

import pytest
import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import qpeft

pytestmark = pytest.mark.filterwarnings("ignore:QPA trains")  # IA3 has few parameters

LM = {"task_type": "CAUSAL_LM"}
HOSTS = {
    "prefix": (PrefixTuningConfig(num_virtual_tokens=8, **LM), 1e-3),
    "prompt": (PromptTuningConfig(num_virtual_tokens=8, **LM), 1e-3),
    "ia3": (IA3Config(**LM), 5e-4),  # PEFT knows the modules
    "loha": (LoHaConfig(r=4, target_modules="all-linear", **LM), 2e-3),
    "lm_head": (LoraConfig(r=4, target_modules=["lm_head"], **LM), 2e-3),
}


@pytest.fixture(scope="module")
def storyteller(shared):
    return AutoModelForCausalLM.from_pretrained(shared / "models" / "stories260K").eval()


@pytest.fixture(scope="module")
def blocks(shared):
    """64 blocks of 48 tokens, int64."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260K")
    text = (shared / "data" / "grimm" / "GrimmsFairyTales.txt").read_text(encoding="utf-8")[:20_000]
    ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]
    return ids[: 64 * 48].view(64, 48)


@pytest.mark.long
@pytest.mark.parametrize("host", HOSTS)
def test_initial_logits_training_and_export(storyteller, blocks, adapters, tmp_path, host):
    plain, (config, lr) = copy.deepcopy(storyteller), HOSTS[host]
    model = get_peft_model(copy.deepcopy(plain), copy.deepcopy(config)).eval()
    stock = adapters.logits(model, blocks[:8])
    qpeft.attach(model, qpeft.QPAGeneratorConfig(chunk_size=64, hidden=(16, 16, 8)))
    assert torch.equal(adapters.logits(model, blocks[:8]), stock)
    before = model(input_ids=blocks[:16], labels=blocks[:16]).loss.item()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for step in range(30):
        batch = blocks[16 + 8 * (step % 6) :][:8]
        optimiser.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimiser.step()
    model.eval()
    held_out = model(input_ids=blocks[:16], labels=blocks[:16]).loss.item()
    assert held_out < before - 0.05  # nats a token, on blocks it was not trained on
    live = adapters.logits(model, blocks[:8])
    qpeft.save(model, tmp_path / "compact")
    assert torch.equal(adapters.logits(qpeft.load(copy.deepcopy(plain), tmp_path / "compact"), blocks[:8]), live)
    qpeft.export(model, tmp_path / "exported")
    again = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "exported").eval()
    torch.testing.assert_close(adapters.logits(again, blocks[:8]), live, atol=1e-5, rtol=0)


@pytest.mark.long
def test_resumed_prefix_run_equals_uninterrupted_run(storyteller, blocks, adapters, tmp_path):
    rows = [{"input_ids": block, "labels": block} for block in blocks]

    def run(folder, seed, resume=None):
        torch.manual_seed(seed)
        model = get_peft_model(copy.deepcopy(storyteller), copy.deepcopy(HOSTS["prefix"][0]))
        qpeft.attach(model, qpeft.QPAGeneratorConfig(budget=0.5))
        arguments = TrainingArguments(
            str(folder), max_steps=8, save_steps=4, learning_rate=1e-3, report_to="none", use_cpu=True,
            disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=rows).train(resume_from_checkpoint=resume)
        return adapters.logits(model.eval(), blocks[:8])

    unbroken = run(tmp_path / "a", seed=0)
    assert torch.equal(run(tmp_path / "b", seed=1, resume=str(tmp_path / "a" / "checkpoint-4")), unbroken)
