"""Attached adapters under training loops: PEFT's own save, which the Trainer calls, must lose nothing."""

import copy

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import Trainer

import qpeft
from trainers import arguments

pytestmark = pytest.mark.filterwarnings("ignore:QPA trains")  # the models are tiny

HOSTS = {
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "lora with a trained head": LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]
    ),
}


def attached(base, host="prefix", draw=0):
    """The torch seed `draw` decides what PEFT draws for the adapter's start."""
    torch.manual_seed(draw)
    config = qpeft.QPAGeneratorConfig(chunk_size=16, hidden=(6, 5), n_layers=3)
    return qpeft.attach(get_peft_model(copy.deepcopy(base), copy.deepcopy(HOSTS[host])), config)


def trainer(model, rows, folder, **changes):
    settings = {"gradient_accumulation_steps": 2, "max_steps": 6, "save_strategy": "steps", "save_steps": 3, **changes}
    return Trainer(model, arguments(folder, **settings), train_dataset=rows, eval_dataset=rows[:4])


@pytest.fixture
def rows():
    tokens = torch.randint(50, (24, 8))
    return [{"input_ids": t, "labels": t, "attention_mask": torch.ones_like(t)} for t in tokens]


@pytest.mark.parametrize("host", HOSTS)
def test_resumed_run_equals_uninterrupted_run(llama, rows, ids, adapters, tmp_path, host):
    unbroken = trainer(attached(llama, host), rows, tmp_path / "a")
    unbroken.train()
    # another process would draw another start: the checkpoint has the one that the run began with
    resumed = trainer(attached(llama, host, draw=1), rows, tmp_path / "b")
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert resumed.state.log_history[-2]["loss"] == unbroken.state.log_history[-2]["loss"]
    for wanted, found in zip(unbroken.model.state_dict().items(), resumed.model.state_dict().items(), strict=True):
        assert wanted[0] == found[0]
        assert torch.equal(wanted[1], found[1]), wanted[0]
    live = adapters.logits(unbroken.model.eval(), ids)
    assert torch.equal(adapters.logits(resumed.model.eval(), ids), live)
    loaded = qpeft.load(copy.deepcopy(llama), tmp_path / "a" / "checkpoint-6")
    assert torch.equal(adapters.logits(loaded, ids), live)


def test_best_checkpoint_is_loaded(llama, rows, ids, adapters, tmp_path):
    changes = {"eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True, "learning_rate": 0.5}
    run = trainer(attached(llama), rows, tmp_path, **changes)
    run.train()  # the learning rate is far too high, so the last checkpoint is not the best
    best = run.state.best_model_checkpoint
    loaded = qpeft.load(copy.deepcopy(llama), best)
    assert torch.equal(adapters.logits(run.model.eval(), ids), adapters.logits(loaded, ids))


def test_accelerate_state_round_trip(llama, rows, ids, adapters, tmp_path):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = attached(llama)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    model, optimiser = accelerator.prepare(model, optimiser)
    batch = {name: torch.stack([row[name] for row in rows[:4]]) for name in rows[0]}
    accelerator.backward(model(**batch).loss)
    optimiser.step()
    accelerator.save_state(str(tmp_path / "state"))
    live = adapters.logits(model.eval(), ids)
    model.load_state_dict(attached(llama, draw=1).state_dict())
    assert not torch.equal(adapters.logits(model, ids), live)
    accelerator.load_state(str(tmp_path / "state"))
    assert torch.equal(adapters.logits(model, ids), live)
