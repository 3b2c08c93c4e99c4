"""The plan against what PEFT and the files really hold; Gemma's counts without Gemma's weights."""

import copy

import pytest
from peft import IA3Config, LoraConfig

import qpeft
from qpeft.errors import ConfigError


def test_the_plan_is_what_is_built_saved_and_exported(llama, ids, adapters, tmp_path):
    config = {"modules_to_save": ["lm_head"], "target_modules": ["q_proj", "down_proj"], "use_dora": True}
    before = {k: v.clone() for k, v in llama.state_dict().items()}
    qpa = qpeft.QPAConfig(r=4, hidden=(6, 5), chunk_size=16, n_layers=3, task_type="CAUSAL_LM", **config)
    plan = qpeft.plan(llama, qpa)
    assert before.keys() == llama.state_dict().keys()  # planning leaves the model alone
    model = adapters.qpa(copy.deepcopy(llama), **config)
    assert plan.trainable == model.get_nb_trainable_parameters()[0]
    report = qpeft.export(model, tmp_path / "exported")
    head = llama.lm_head.weight.numel()
    assert plan.deployed == report.n_generated + head
    assert plan.trainable_parts["other"] == head
    qpeft.save(model, tmp_path / "compact")
    for folder, size in (("exported", plan.exported_bytes), ("compact", plan.stored_bytes)):
        on_disk = (tmp_path / folder / "adapter_model.safetensors").stat().st_size
        assert 0 <= on_disk - size < 8000  # the header


def test_gemma_from_its_config_alone():
    from transformers import GemmaConfig

    config = GemmaConfig(
        vocab_size=256_000,
        hidden_size=2048,
        num_hidden_layers=18,
        intermediate_size=16_384,
        num_attention_heads=8,
        num_key_value_heads=1,
        head_dim=256,
    )
    plan = qpeft.plan(config, qpeft.QPAConfig(r=4, target_modules=["lm_head"], chunk_size=4096))
    assert (plan.trainable, plan.deployed, plan.n_qubits, plan.n_chunks) == (173_888, 1_032_192, 8, 252)
    assert plan.base_parameters == 2_506_172_416


def test_gpt2_official_from_its_config_alone_and_a_smaller_lora():
    from transformers import GPT2Config

    plan = qpeft.plan(GPT2Config(), qpeft.QPAConfig.official())
    assert (plan.trainable, plan.deployed, plan.rank_bound) == (106_264, 204_100, 9)
    assert plan.notes == ["LoRA of rank 2 on the same modules trains 102,050 parameters, within this budget"]


def test_notes_on_small_models(llama):
    config = qpeft.QPAConfig(r=4, target_modules=["q_proj"], chunk_size=64, hidden=(6, 5))
    notes = qpeft.plan(llama, config).notes
    assert "16 angles for 3 independent probabilities: the circuit is over-parametrised" in notes
    assert any("not a compression" in note for note in notes)
    frozen = qpeft.QPAConfig(r=4, target_modules=["q_proj"], chunk_size=16, hidden=(6, 5), feature_source="none")
    assert not any("over-parametrised" in note for note in qpeft.plan(llama, frozen).notes)


def test_stock_lora_is_planned_beside(llama):
    plan = qpeft.plan(llama, LoraConfig(r=2, target_modules=["q_proj"]))
    assert (plan.method, plan.trainable, plan.deployed) == ("lora", 128, 128)
    plan = qpeft.plan(llama, IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
    assert (plan.trainable, len(plan.target_modules)) == (32, 2)


def test_a_base_that_is_nowhere(tmp_path):
    with pytest.raises(ConfigError, match=r"give a hub id that can be reached, or a local folder with config\.json"):
        qpeft.plan(tmp_path / "nothing", qpeft.QPAConfig(target_modules=["q"]))


def test_a_typo_costs_nothing(llama):
    with pytest.raises(ConfigError, match="nearest names: q_proj"):
        qpeft.plan(llama, qpeft.QPAConfig(target_modules=["q_prj"]))
