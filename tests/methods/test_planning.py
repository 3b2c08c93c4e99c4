"""Plans compared with PEFT's counts and saved files."""

import pytest
from peft import IA3Config, LoraConfig

import qpeft
from qpeft.errors import ConfigError


def test_official_preset_on_gpt2():
    from transformers import GPT2Config

    plan = qpeft.plan(GPT2Config(), qpeft.QPAConfig.official())
    assert (plan.trainable, plan.deployed, plan.sizes["rank_bound"]) == (106_264, 204_100, 9)
    assert plan.notes == ["LoRA of rank 2 on the same modules trains 102,050 parameters, within this budget"]


def test_note_counts_lora_within_the_budget(llama):
    """No chunk size of this circuit uses the whole budget, which is LoRA of rank 2."""
    plan = qpeft.plan(llama, qpeft.QPAConfig(r=4, target_modules=["q_proj"], budget=0.5, n_layers=3))
    assert plan.trainable < plan.deployed / 2
    assert any(
        note.startswith(f"LoRA of rank 2 on the same modules trains {plan.deployed // 2:,}") for note in plan.notes
    )


def test_rank_bound_of_linear_maps_is_the_number_of_features():
    from transformers import GPT2Config

    config = qpeft.QPAConfig(features=8, n_generators=2, budget=0.5, target_modules=["lm_head"])
    assert qpeft.plan(GPT2Config(), config).sizes["rank_bound"] == 16


def test_notes_on_small_models(llama):
    config = qpeft.QPAConfig(r=4, target_modules=["q_proj"], chunk_size=64, hidden=(6, 5))
    notes = qpeft.plan(llama, config).notes
    assert any("not a compression" in note for note in notes)


@pytest.mark.parametrize("make", [LoraConfig, qpeft.QuantumPeftConfig, qpeft.SoRAConfig])
def test_plan_counts_the_training_of_a_config_for_inference(llama, make):
    plans = [qpeft.plan(llama, make(target_modules=["q_proj"], inference_mode=mode)) for mode in (False, True)]
    assert plans[0] == plans[1]


def test_plan_of_stock_adapters(llama):
    plan = qpeft.plan(llama, LoraConfig(r=2, target_modules=["q_proj"]))
    assert (plan.method, plan.trainable, plan.deployed) == ("lora", 128, 128)
    plan = qpeft.plan(llama, IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
    assert (plan.trainable, len(plan.target_modules)) == (32, 2)


def test_missing_base_raises(tmp_path):
    with pytest.raises(ConfigError, match=r"give a hub id that can be reached, or a local folder with config\.json"):
        qpeft.plan(tmp_path / "nothing", qpeft.QPAConfig(target_modules=["q"]))
