"""Names of modules in a study that depend on its base."""

import copy

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig

from qpeft.core.meta_model import on_meta
from qpeft.errors import ConfigError
from qpeft.methods.suggest import fill_names

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
OF_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2}
OF_OPT = {**SMALL, "ffn_dim": 32, "word_embed_proj_dim": 16}


def base(model_type, **sizes):
    return on_meta(AutoConfig.for_model(model_type, vocab_size=8, **sizes))


GPT2, LLAMA = base("gpt2", **OF_GPT2), base("llama", **SMALL)


@pytest.mark.parametrize(
    ("model", "norms", "last"),
    [
        (GPT2, ["ln_1", "ln_2", "ln_f"], "transformer.ln_f"),
        (LLAMA, ["input_layernorm", "norm", "post_attention_layernorm"], "model.norm"),
        # registered before the blocks
        (base("opt", **OF_OPT), ["final_layer_norm", "self_attn_layer_norm"], "model.decoder.final_layer_norm"),
        # only those of the embeddings and of the prediction head are outside of blocks
        (base("bert", **SMALL), ["LayerNorm"], "cls.predictions.transform.LayerNorm"),
    ],
    ids=["gpt2", "llama", "opt", "bert"],
)
def test_norms_are_those_of_the_base(model, norms, last):
    settings = {"r": 3, "modules_to_save": "@norms", "target_modules": "@last-norm"}
    assert fill_names(settings, model) == {"r": 3, "modules_to_save": norms, "target_modules": [last]}


@pytest.mark.parametrize("model", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_linear_maps_are_those_of_peft_and_the_output_head(model):
    names = fill_names({"target_modules": "@linear-and-head"}, model)["target_modules"]
    adapted = {
        targets: set(get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=targets)).targeted_module_names)
        for targets in ("all-linear", tuple(names))
    }
    assert adapted[tuple(names)] == adapted["all-linear"] | {"lm_head"}


def test_base_without_such_modules_is_refused():
    assert fill_names({"r": 3}, nn.Linear(2, 2)) == {"r": 3}
    with pytest.raises(ConfigError, match="@norms"):
        fill_names({"modules_to_save": "@norms"}, nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="@linear-and-head"):
        fill_names({"target_modules": "@linear-and-head"}, nn.LayerNorm(2))
