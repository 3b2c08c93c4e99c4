"""Costs of every kind of method, FLOPs compared with explicit counts, and reasons for missing measurements."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from torch.nn.functional import cross_entropy

import qpeft
from qpeft.compare.measurements.cost import measure_cost
from qpeft.compare.measurements.speed import TrainingSteps, flops_per_token, tokens_per_second
from qpeft.errors import ConfigError
from qpeft.training.generation import has_room
from qpeft.training.settings import TrainSettings

LM = {"task_type": "CAUSAL_LM"}
LINEAR = {**LM, "target_modules": "all-linear"}
SETTINGS = TrainSettings(model="tiny", data="none", out="none")
SMALL = {"warm_up": 1, "timed": 4, "prompt": 5, "new_tokens": 4, "batch_sizes": (1, 3), "rounds": 1}
CONFIGS = {
    "lora": lambda: LoraConfig(**LINEAR, r=2),
    "qpa": lambda: qpeft.QPAConfig(**LINEAR, r=2, hidden=(6, 5), chunk_size=16, n_layers=2),
    "sora": lambda: qpeft.SoRAConfig(**LINEAR, r=2),
    "qaa": lambda: qpeft.QAAConfig(**LM),
    "prefix": lambda: PrefixTuningConfig(**LM, num_virtual_tokens=3),
}
NOT_MERGED = {
    "qaa": "QAA updates depend on the input",
    "prefix": "there is nothing to merge",
    "full": "there is nothing to merge",
}


def batches(n=2):
    return [{"input_ids": ids, "labels": ids} for ids in torch.randint(50, (n, 3, 9))]


def make(base, method):
    if method == "full":
        return lambda: copy.deepcopy(base)
    return lambda: get_peft_model(copy.deepcopy(base), CONFIGS[method]())


def measure(base, method, **changes):
    return measure_cost(
        make(base, method), make(base, "lora"), make(base, "full"), batches(), SETTINGS, **{**SMALL, **changes}
    )


@pytest.mark.parametrize("method", [*CONFIGS, "full"])
def test_methods_are_measured(llama, method):
    found = measure(llama, method)
    json.dumps(found, allow_nan=False)
    for times in (found["step_ms"], found["reference_step_ms"]):
        assert 0 < times["p10"] <= times["median"] <= times["p90"]
    assert found["step_ratio"] == found["step_ms"]["median"] / found["reference_step_ms"]["median"]
    assert found["step_twin_ratio"] > 0
    assert found["infer_twin_ratio"] > 0
    assert found["peak_mem_bytes"] > 10_000_000
    assert found["peak_mem_kind"] == "resident set of the process"
    speeds = found["infer_tok_s"]
    assert set(speeds) == {"batch_1", "batch_3"}
    assert all(set(by_name) == {"base", "unmerged", "merged"} for by_name in speeds.values())
    first = speeds["batch_1"]
    assert found["infer_overhead_pct"] == pytest.approx(100 * (first["base"] / first["unmerged"] - 1))
    if method in ("lora", "qpa", "sora"):
        assert first["merged"] > 0
        assert found["null_reasons"] == {}
    else:
        assert first["merged"] is None
        assert set(found["null_reasons"]) == {"infer_tok_s.batch_1.merged", "infer_tok_s.batch_3.merged"}
        assert NOT_MERGED[method] in found["null_reasons"]["infer_tok_s.batch_1.merged"]


def test_short_context_has_a_reason_instead_of_a_speed(llama):
    found = measure(llama, "prefix", prompt=20, new_tokens=10)  # with 3 virtual tokens 33 of 32
    assert found["infer_tok_s"] is None
    assert found["infer_overhead_pct"] is None
    assert "no room for 20 and 10 tokens" in found["null_reasons"]["infer_tok_s"]
    assert has_room(llama, 32)
    assert not has_room(llama, 33)


def test_classifiers_have_no_generation_speed():
    from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    labels = torch.tensor([0, 1])
    vit = make(ViTForImageClassification(ViTConfig(**shape, image_size=8, patch_size=4)), "full")
    images = [{"pixel_values": torch.randn(2, 3, 8, 8), "labels": labels}]
    bert = make(BertForSequenceClassification(BertConfig(vocab_size=50, **shape)), "full")
    texts = [{"input_ids": torch.randint(50, (2, 6)), "labels": labels}]
    for model, given, reason in ((vit, images, "the model reads no text"), (bert, texts, "the model writes no text")):
        found = measure_cost(model, model, model, given, SETTINGS, **SMALL)
        reasons = found["null_reasons"]
        assert reasons["infer_tok_s"] == reasons["infer_overhead_pct"] == reason
        assert (found["flops_per_token"] is None) is ("flops_per_token" in reasons) is (given is images)
        assert found["step_ms"]["median"] > 0


def test_flops_of_a_linear_model():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(50, 8).requires_grad_(False)
            self.up, self.head = torch.nn.Linear(8, 12, bias=False), torch.nn.Linear(12, 50, bias=False)

        def forward(self, input_ids, labels):
            logits = self.head(self.up(self.embed(input_ids)))
            return type("Output", (), {"loss": cross_entropy(logits.flatten(0, 1), labels.flatten())})

    # per token, forward: 2 * 8 * 12 + 2 * 12 * 50; backward: both weights, and the inputs of the head alone
    expected = 2 * (8 * 12 + 12 * 50) + 2 * (8 * 12 + 12 * 50) + 2 * 12 * 50
    assert flops_per_token(TrainingSteps(Two(), SETTINGS), batches()[0]) == expected


def test_flops_per_token_ignore_padding(llama):
    batch = batches()[0]
    padded = {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}
    run = TrainingSteps(copy.deepcopy(llama), SETTINGS)
    whole = flops_per_token(run, padded)
    padded["attention_mask"][:, 6:] = 0
    assert flops_per_token(run, padded) == pytest.approx(1.5 * whole, rel=1e-6)


def test_flops_include_attention(llama):
    # twice the length doubles what is per token; attention makes it more
    run = TrainingSteps(copy.deepcopy(llama), SETTINGS)
    short, long = ({"input_ids": ids, "labels": ids} for ids in (torch.randint(50, (1, 8)), torch.randint(50, (1, 16))))
    assert flops_per_token(run, long) > 1.01 * flops_per_token(run, short)


def test_timed_step_trains(llama):
    # a generator that ran but once would cost nothing from the second step on
    model = make(llama, "qpa")()
    run, batch = TrainingSteps(model, SETTINGS), batches()[0]
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    run.step(batch)
    assert all(not torch.equal(a, b) for a, b in zip(before, (p for p in model.parameters() if p.requires_grad)))  # noqa: B905


def test_generation_continues_past_the_end_token(llama, monkeypatch):
    llama.generation_config.eos_token_id = list(range(49))  # all but one token end the text
    seen = []
    generate = llama.generate
    monkeypatch.setattr(llama, "generate", lambda **given: seen.append(generate(**given)) or seen[-1])
    tokens_per_second({"a": llama}, torch.randint(50, (2, 5)), 7, (2,), 1)
    assert seen[-1].shape == (2, 12)


def test_models_are_built_once(llama):
    built = []

    def counting(method):
        return lambda: built.append(method) or make(llama, method)()

    measure_cost(counting("qpa"), counting("lora"), counting("full"), batches(), SETTINGS, **SMALL)
    assert sorted(built) == ["full", "lora", "qpa"]


def test_missing_batches_raise(llama):
    model = make(llama, "full")
    with pytest.raises(ConfigError, match="there are none"):
        measure_cost(model, model, model, [], SETTINGS)
