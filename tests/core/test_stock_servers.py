"""Which servers load an adapter, against their documented rules and against TRL's own check."""

import copy

import pytest
from peft import IA3Config, LoraConfig, PrefixTuningConfig, get_peft_model
from torch import nn

import qpeft
from qpeft.core.stock_servers import RANKS, check_config, check_servers

TARGETS = ["q_proj", "up_proj"]
HEAD = ["q_proj", "lm_head"]
TRL = "TRL's vLLM sync"
YES = "yes, if vLLM supports LoRA for the architecture"
# config -> whether vLLM loads it, whether TRL sends it, and a part of the reason: docs/serving.md has the sources
LORA = {
    "plain": ({}, True, True, "yes"),
    "rank 16": ({"r": 16}, True, True, "yes"),
    "rank 20": ({"r": 20}, True, True, "--max-lora-rank 32"),
    "rank 513": ({"r": 513}, False, False, "rank 513 is above 512"),
    "rsLoRA": ({"use_rslora": True}, True, True, "yes"),
    "trained norm": ({"modules_to_save": ["norm"]}, False, False, "modules_to_save (norm)"),
    "DoRA": ({"use_dora": True}, False, False, "DoRA"),
    "bias": ({"bias": "lora_only"}, False, False, "biases"),
    "output head": ({"target_modules": HEAD}, True, False, "output head"),
    "embedding": ({"target_modules": ["q_proj", "embed_tokens"]}, True, False, "embedding"),
    "one rank": ({"rank_pattern": {"up_proj": 2}}, False, False, "different scales"),
    "one rank of equal scale": ({"rank_pattern": {"up_proj": 2}, "alpha_pattern": {"up_proj": 4}}, True, True, "yes"),
    "a trained token": ({"trainable_token_indices": [3]}, False, False, "other than lora_A and lora_B"),
}


@pytest.fixture(params=LORA)
def lora(request, llama):
    settings, *expected = LORA[request.param]
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **settings}, task_type="CAUSAL_LM")
    return get_peft_model(llama, config), *expected


def test_lora_against_the_documented_rules(lora, tmp_path):
    model, vllm, trl, part = lora
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    checks = {check.server: check for check in check_servers(tmp_path)}
    assert {server: not check.reasons for server, check in checks.items()} == {"vLLM": vllm, TRL: trl}
    assert part in str(checks[TRL])


def test_config_alone_decides_what_needs_no_tensors(lora, tmp_path):
    model, vllm, trl, part = lora
    by_tensors = any(word in part for word in ("scales", "other than"))  # seen in the tensors only
    found = {check.server: not check.reasons for check in check_config(model.peft_config["default"])}
    assert found == ({"vLLM": True, TRL: True} if by_tensors else {"vLLM": vllm, TRL: trl})


def test_output_head_and_embedding_depend_on_the_model(llama, tmp_path):
    for name in ("lm_head", "embed_tokens"):
        config = LoraConfig(r=20, target_modules=["q_proj", name], task_type="CAUSAL_LM")
        model = get_peft_model(copy.deepcopy(llama), config)
        model.save_pretrained(tmp_path / name, save_embedding_layers=False)
        found = [str(check_servers(tmp_path / name)[0]), str(check_config(config)[0])]
        assert found == ["for some models, with --max-lora-rank 32: it adapts the output head or the embedding"] * 2


@pytest.mark.parametrize("name", ["wte", "gpt_neox.embed_in", "embed_out"])
def test_embeddings_and_heads_of_other_names_depend_on_the_model(name):
    """TRL refuses the names lm_head and embed_tokens only."""
    for check in check_config(LoraConfig(target_modules=["c_attn", name], task_type="CAUSAL_LM")):
        assert str(check) == "for some models: it adapts the output head or the embedding"


def test_embedding_of_any_name_is_seen_in_the_tensors(tmp_path):
    base = nn.ModuleDict({"anything": nn.Embedding(8, 4)})
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["anything"]))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    assert str(check_servers(tmp_path)[0]) == "for some models: it adapts the output head or the embedding"


def test_config_of_a_generated_adapter_is_that_of_its_export():
    common = {"r": 4, "target_modules": TARGETS, "modules_to_save": ["norm"], "task_type": "CAUSAL_LM"}
    for config in (qpeft.QuantumPeftConfig(**common), LoraConfig(**common)):
        assert [str(check) for check in check_config(config)] == [
            "no, it has modules_to_save (norm), such as a head or norm gains"
        ] * 2
    assert "it is an adapter of type IA3" in str(check_config(IA3Config(target_modules=TARGETS))[0])


def test_trl_agrees(lora, tmp_path):
    """As far as TRL looks: it leaves the rank to the server, and ignores scales and trained tokens."""
    module = pytest.importorskip("trl.experimental.async_grpo.async_grpo_trainer", exc_type=ImportError)
    assert module.VLLM_LORA_RANKS == RANKS
    model, _, ours, part = lora
    try:
        module.validate_lora_for_vllm_sync(model)
        module.round_lora_rank(model.peft_config["default"].r)
        theirs = True
    except ValueError:
        theirs = False
    assert theirs == (ours or "scales" in part or "other than" in part)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "type IA3"),
        (PrefixTuningConfig(num_virtual_tokens=2), "type PREFIX_TUNING"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_types_are_refused(llama, config, part, tmp_path):
    config.task_type = "CAUSAL_LM"
    get_peft_model(llama, config).save_pretrained(tmp_path)
    assert all(part in str(check) for check in check_servers(tmp_path))


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({}, YES),
        ({"rank_pattern": {"up_proj": 2}}, YES),  # every scale is 1
        ({"modules_to_save": ["norm"]}, "no, it has modules_to_save (norm), such as a head or norm gains"),
    ],
    ids=str,
)
def test_export_reports_the_servers(llama, tmp_path, settings, answer):
    import json

    model = get_peft_model(
        llama, qpeft.QuantumPeftConfig(r=3, target_modules=TARGETS, task_type="CAUSAL_LM", **settings)
    )
    assert qpeft.export(model, tmp_path / "out").servers == {"vLLM": answer, TRL: answer}
    assert json.loads((tmp_path / "out" / "qpeft.json").read_text())["servers"]["vLLM"] == answer


def test_export_for_an_architecture_without_lora_in_vllm(gpt2, tmp_path):
    """GPT-2, GPT-J and GPT-NeoX have no mark for LoRA in vLLM's list of supported models."""
    model = get_peft_model(gpt2, qpeft.QuantumPeftConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM"))
    servers = qpeft.export(model, tmp_path / "out").servers
    assert {server: answer.partition(",")[0] for server, answer in servers.items()} == {"vLLM": "no", TRL: "no"}
    assert str(check_servers(tmp_path / "out", "llama")[0]) == YES
