"""What vLLM loads, by the documented rules, compared with vLLM's own checks where it is installed
(`make compat`).
"""

from importlib.util import find_spec

import pytest
from peft import IA3Config, LoraConfig, PrefixTuningConfig, get_peft_model

import qpeft
from qpeft.files import read_json
from qpeft_lab.stock_servers import RANKS, check_export, refusals

pytestmark = pytest.mark.filterwarnings("ignore")
needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="`make compat` installs vllm")


TARGETS = ["q_proj", "up_proj"]
YES = "yes, if vLLM supports LoRA for the architecture"
# settings -> whether vLLM loads it, and a part of the answer: docs/small_adapters.md has the
# sources
LORA = {
    "plain": ({}, True, YES),
    "rank 16": ({"r": 16}, True, YES),
    "rank 20": ({"r": 20}, True, "--max-lora-rank 32"),
    "rank 513": ({"r": 513}, False, "513"),
    "rsLoRA": ({"use_rslora": True}, True, YES),
    "trained norm": ({"modules_to_save": ["norm"]}, False, "norm"),
    "DoRA": ({"use_dora": True}, False, "DoRA"),
    "bias": ({"bias": "lora_only"}, False, "biases"),
    "PiSSA": ({"init_lora_weights": "pissa"}, False, "pissa"),
    "output head": ({"target_modules": ["q_proj", "lm_head"]}, True, "for some models"),
    "embedding": ({"target_modules": ["q_proj", "embed_tokens"]}, True, "for some models"),
    "one rank": ({"rank_pattern": {"up_proj": 20}}, True, "--max-lora-rank 32"),
    "a trained token": ({"trainable_token_indices": [3]}, False, "trained tokens"),
}


@pytest.fixture(params=LORA)
def lora(request, llama, tmp_path):
    settings, *expected = LORA[request.param]
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **settings}, task_type="CAUSAL_LM"
    )
    get_peft_model(llama, config).save_pretrained(tmp_path, save_embedding_layers=False)
    return config, tmp_path, *expected


def test_lora_against_the_documented_rules(lora):
    config, folder, loads, part = lora
    answer = check_export(folder)
    assert part in answer
    assert answer.startswith("no") == (not loads)

    before_training = refusals(config, certain=True)
    assert bool(before_training) == (not loads)
    assert bool(refusals(config)) == (bool(before_training) or part.startswith("for some"))


@needs_vllm
def test_vllm_agrees(lora):
    """As far as it looks before it reads the tensors."""
    from vllm.lora.peft_helper import PEFTHelper

    _, folder, loads, part = lora
    helper = PEFTHelper.from_local_dir(str(folder), None)
    theirs = not helper._validate_features() and helper.bias == "none" and helper.r <= RANKS[-1]

    assert theirs == (loads or part == "trained tokens")


def test_generated_adapters_are_checked_as_their_exports():
    common = {"r": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
    assert refusals(qpeft.QPAConfig(**common)) == refusals(qpeft.SoRAConfig(**common)) == []
    assert "norm" in refusals(qpeft.QuantumPeftConfig(**common, modules_to_save=["norm"]))[0]
    assert "QPEFT_QAA" in refusals(qpeft.QAAConfig(target_modules=TARGETS))[0]
    assert "IA3" in refusals(IA3Config(target_modules=TARGETS))[0]
    assert "PREFIX_TUNING" in refusals(PrefixTuningConfig(num_virtual_tokens=2))[0]

    head = LoraConfig(r=4, target_modules=TARGETS, modules_to_save=["score"], task_type="SEQ_CLS")
    assert refusals(head, certain=True) == []  # depends on the model
    assert "classification" in refusals(head)[0]


def test_architecture_without_lora_in_vllm_is_refused(gpt2, tmp_path):
    model = get_peft_model(
        gpt2, qpeft.QuantumPeftConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM")
    )
    qpeft.export(model, tmp_path)
    assert read_json(tmp_path / "adapter_config.json")["r"] == 2
    assert check_export(tmp_path, "gpt2").startswith("no")
    assert check_export(tmp_path, "llama") == YES
    assert refusals(model.peft_config["default"], "gpt2")
