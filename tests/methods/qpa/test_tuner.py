"""QPA in training: the order of its values, one evaluation per step, one autograd node, the usual learning rates."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer

from qpeft.core.binding import _Boundary
from trainers import arguments


def test_vector_order(llama, adapters):
    def labels(order):
        model = adapters.qpa(copy.deepcopy(llama), vector_order=order, target_modules=["q_proj", "v_proj"])
        return [slot.label for slot in model.base_model.generators.bindings["default"].slots]

    stock = get_peft_model(copy.deepcopy(llama), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    names = [n for n, p in stock.base_model.model.named_parameters() if p.requires_grad]
    assert labels("peft") == [n.replace(".default", "") for n in names]
    assert labels("official")[:2] == labels("peft")[1::-1]
    assert "lora_B" in labels("official")[0]
    assert sorted(labels("official")) == sorted(labels("peft"))


def test_generate_evaluates_the_generator_once(llama, ids, adapters, monkeypatch):
    model = adapters.train(adapters.qpa(llama), ids)
    generator = model.base_model.generators["default"]
    runs = []
    forward = generator.forward
    monkeypatch.setattr(generator, "forward", lambda: runs.append(1) or forward())
    model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0
    )
    assert len(runs) <= 1


DEFAULT = {"hidden": (), "chunk_size": None}  # the default generator


@pytest.fixture
def rows():
    tokens = torch.randint(50, (16, 8))
    return [{"input_ids": t, "labels": t, "attention_mask": torch.ones_like(t)} for t in tokens]


@pytest.mark.parametrize("lr", [2e-4, 2e-3])
def test_usual_learning_rates_of_lora_train_qpa(llama, rows, adapters, tmp_path, lr):
    """At each learning rate the folded parametrisation must learn at least twice what the unfolded one does."""

    def gain(**scales):
        model = adapters.qpa(copy.deepcopy(llama), **DEFAULT, **scales)
        trainer = Trainer(model, arguments(tmp_path, learning_rate=lr, max_steps=30), train_dataset=rows)
        before = trainer.evaluate(rows)["eval_loss"]
        trainer.train()
        return before - trainer.evaluate(rows)["eval_loss"]

    folded = gain()
    assert folded > 0
    assert folded > 2 * gain(angle_scale=1.0, mlp_scale=1.0)


def test_generator_adds_one_autograd_node(llama, ids, adapters):
    loss = adapters.qpa(llama, **DEFAULT)(input_ids=ids, labels=ids).loss
    seen, queue = set(), [loss.grad_fn]
    while queue:
        node = queue.pop()
        if node is not None and node not in seen:
            seen.add(node)
            queue.extend(parent for parent, _ in node.next_functions)
    assert sum(type(node).__name__ == f"{_Boundary.__name__}Backward" for node in seen) == 1
