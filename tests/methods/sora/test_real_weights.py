"""SoRA on a Llama that tells stories, on Grimm's tales. Skipped where the weights are absent."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

import qpeft

STEPS = 24


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


@pytest.fixture
def run(storyteller, blocks, tmp_path):
    """A Trainer run from the same start; its model, in evaluation mode."""

    def go(folder, callback, resume=None, *, told=True):
        config = qpeft.SoRAConfig(r=8, target_modules="all-linear", shrink_budget=0.25, task_type="CAUSAL_LM")
        model = get_peft_model(copy.deepcopy(storyteller), config)
        model.base_model.shrinks = not told
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(tmp_path / folder),
                max_steps=STEPS,
                learning_rate=2e-2,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=2,
                save_steps=STEPS // 3,
                use_cpu=True,
                dataloader_pin_memory=False,
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=[{"input_ids": block, "labels": block} for block in blocks],
            callbacks=[callback],
        )
        trainer.train(resume_from_checkpoint=resume)
        return model.eval()

    return go


class ByHand(TrainerCallback):
    """The threshold as it is written, without a hook."""

    def __init__(self, sora_lambda):
        self.sora_lambda = sora_lambda

    def on_optimizer_step(self, args, state, control, **kwargs):
        rate = kwargs["optimizer"].param_groups[0]["lr"]
        with torch.no_grad():
            for _, _, gate in kwargs["model"].base_model.gates():
                gate.copy_(gate.sign() * (gate.abs() - rate * self.sora_lambda).clamp_min(0))


def trained(model):
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def folded(model):
    """The gates multiplied into B as an export does it, in float32; gates of 0 and 1 are left."""
    with torch.no_grad():
        for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
            gate = layer.sora_gate["default"]
            layer.lora_B["default"].weight.mul_(gate)
            gate.copy_(gate != 0)
    return model


@pytest.mark.long
def test_zeros_resume_manual_threshold_and_export(run, storyteller, blocks, tmp_path):
    def loss(model):
        with torch.no_grad():
            return model(input_ids=blocks, labels=blocks).loss.item()

    plain = copy.deepcopy(storyteller)
    model = run("whole", qpeft.SoRACallback())
    gates = torch.cat([gate.detach() for _, _, gate in model.base_model.gates()])
    assert loss(model) < loss(plain) - 0.1
    assert 0 < (gates == 0).sum() < len(gates)
    resumed = run("resumed", qpeft.SoRACallback(), str(tmp_path / "whole" / f"checkpoint-{STEPS // 3}"))
    assert torch.equal(trained(resumed), trained(model))
    by_hand = run("by_hand", ByHand(model.peft_config["default"].sora_lambda), told=False)
    assert torch.equal(trained(by_hand), trained(model))

    report = qpeft.export(model, tmp_path / "stock")
    assert report.n_zero == int((gates == 0).sum())
    assert report.n_deployed < report.n_trained
    stock = PeftModel.from_pretrained(plain, str(tmp_path / "stock")).eval()
    live, exported = (m(input_ids=blocks[:4]).logits for m in (model, stock))
    assert (live - exported).abs().max() < 8e-6 * live.abs().max()  # sums of fewer ranks
    live, exported = (m.double()(input_ids=blocks[:4]).logits for m in (folded(model), stock))
    assert (live - exported).abs().max() < 1e-10  # without rounding: one function
