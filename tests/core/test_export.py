"""An export has the files of a stock PEFT adapter, in `test_life.py` its logits; what has no
adapter; cards.
"""

import copy
import os
from functools import partial

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPForImageClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from variants import move

import qpeft
from qpeft.core.export import probe_inputs
from qpeft.core.generator_holder import count_trainable
from qpeft.core.model_card import load_lines, metadata, users_card
from qpeft.errors import ConfigError, VerificationError
from qpeft.files import read_json

SHAPES = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "rank_pattern": {"q_proj": 2}},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_files_equal_those_of_stock_peft(llama, ids, adapters, tmp_path, shape):
    plain = copy.deepcopy(llama)
    folders = (tmp_path / "exported", tmp_path / "stock")
    model = adapters.train(adapters.qpa(llama, **SHAPES[shape]), ids).train()
    model.base_model.model.model.layers[0].eval()  # as somebody does who freezes a dropout
    modes = [module.training for module in model.modules()]
    qpeft.export(model, folders[0])

    assert [module.training for module in model.modules()] == modes

    fields = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **SHAPES[shape]}
    stock = get_peft_model(plain, LoraConfig(**fields))
    stock.save_pretrained(folders[1], save_embedding_layers=False)
    ours, theirs = (load_file(p / "adapter_model.safetensors") for p in folders)

    assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {
        k: (v.shape, v.dtype) for k, v in theirs.items()
    }

    ours, theirs = (read_json(p / "adapter_config.json") for p in folders)
    assert ours["target_modules"] == sorted(ours["target_modules"])  # in every process

    for config in (ours, theirs):  # sets have no order in JSON
        config["target_modules"] = sorted(config["target_modules"])
    assert ours == theirs


def test_ranks_without_an_effect_are_left_out(llama, ids, adapters, tmp_path):
    """So that each module is exported at the rank of its update."""
    fresh = copy.deepcopy(llama)
    names = [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]
    names += [f"model.layers.{layer}.mlp.up_proj" for layer in (0, 1)]
    config = qpeft.QuantumPeftConfig(
        r=4,
        lora_alpha=6,
        alpha_pattern={"q_proj": 2},
        target_modules=["q_proj", "up_proj"],
        task_type="CAUSAL_LM",
    )
    model = move(get_peft_model(llama, config), spread=0.25)
    lam = model.base_model.generators["default"].lam.tau.data.view(4, 4)  # (modules, r)
    lam[0, 1] = lam[1, 0] = lam[1, 3] = 0
    lam[2] = 0
    expected = adapters.logits(model, ids)
    updates = {
        name: model.get_submodule(f"base_model.model.{name}").get_delta_weight("default").double()
        for name in names
    }
    ranks = {name: int(torch.linalg.matrix_rank(updates[name], rtol=1e-6)) for name in names}

    assert sorted(ranks.values()) == [0, 2, 3, 4]

    report = qpeft.export(model, tmp_path)
    assert report.ranks == ranks

    stored = load_file(tmp_path / "adapter_model.safetensors")
    widths = {key: min(tensor.shape) for key, tensor in stored.items()}
    assert widths == {
        f"base_model.model.{name}.lora_{side}.weight": rank
        for name, rank in ranks.items()
        for side in "AB"
        if rank
    }

    stock = PeftModel.from_pretrained(fresh, tmp_path).eval()
    torch.testing.assert_close(adapters.logits(stock, ids), expected, atol=1e-6, rtol=1e-6)


def test_export_of_a_second_adapter(llama, ids, adapters, tmp_path):
    model = adapters.qpa(llama)
    model.add_adapter(
        "second", qpeft.QPAConfig(r=2, target_modules=["q_proj"], chunk_size=8, hidden=(4,))
    )
    model.set_adapter("second")
    adapters.train(model, ids)
    torch.manual_seed(0)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    report = qpeft.export(model, tmp_path, adapter_name="second")
    assert torch.equal(torch.rand(3), drawn)  # a training goes on with the same dropout

    assert report.n_deployed == 2 * 2 * (16 + 16)
    assert model.active_adapters == ["second"]


@pytest.mark.parametrize("method", ["qpa", "sora"])
def test_counts_leave_out_the_frozen_bias_of_a_copied_head(tmp_path, method):
    """PEFT's file has it, since `bias="all"` saves every bias."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    base = BertForSequenceClassification(BertConfig(intermediate_size=24, **sizes))
    settings = {"r": 2, "bias": "all", "task_type": "SEQ_CLS"}
    config = {"qpa": partial(qpeft.QPAConfig, chunk_size=8), "sora": qpeft.SoRAConfig}[method](
        **settings
    )
    plan = qpeft.plan(base, config)
    model = get_peft_model(base, config)
    report = qpeft.export(model, tmp_path)

    assert report.n_trained == plan.trainable == count_trainable(model)
    assert report.n_deployed == plan.deployed


def test_only_the_card_of_a_compact_checkpoint_imports_qpeft(gpt2, ids, adapters, tmp_path):
    model = adapters.train(adapters.qpa(gpt2, target_modules=["lm_head"]), ids)
    for put, is_compact in ((qpeft.export, False), (qpeft.save, True)):
        put(model, tmp_path / put.__name__)
        assert ("import qpeft" in (tmp_path / put.__name__ / "README.md").read_text()) == is_compact
    record = read_json(tmp_path / "export" / "qpeft.json")
    assert record["n_trained"] == model.base_model.generators["default"].count.total


def test_failed_export_saves_nothing(llama, ids, adapters, tmp_path, monkeypatch):
    model = adapters.train(adapters.qpa(llama), ids)
    model.merge_adapter()
    with pytest.raises(ConfigError, match="unmerge_adapter"):
        qpeft.export(model, tmp_path / "exported")

    model.unmerge_adapter()
    with model.disable_adapter(), pytest.raises(ConfigError, match="disabled"):
        qpeft.export(model, tmp_path / "exported")
    with pytest.raises(ConfigError, match="'unknown' is not generated by qpeft"):
        qpeft.export(model, tmp_path / "exported", adapter_name="unknown")

    binding = model.base_model.generators.bindings["default"]
    wrong = [v + 0.1 for v in binding.values()]
    monkeypatch.setattr(binding, "values", lambda: wrong)

    with pytest.raises(VerificationError, match="nothing was saved"):
        qpeft.export(model, tmp_path / "exported")

    monkeypatch.setattr(binding, "values", lambda: [v * torch.inf for v in wrong])
    with pytest.raises(ConfigError, match="non-finite adapter parameter in"):
        qpeft.export(model, tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []


# -- the inputs with which an export is verified


def adapted(base):
    return get_peft_model(base, LoraConfig(r=2, target_modules="all-linear")).eval()


def test_probe_is_within_the_context_the_vocabulary_and_the_image_of_the_model(tmp_path):
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    config = LlamaConfig(
        vocab_size=7, max_position_embeddings=5, bos_token_id=0, eos_token_id=0, **sizes
    )
    ids = probe_inputs(adapted(LlamaForCausalLM(config)))["input_ids"]

    assert ids.shape == (1, 5)
    assert ids.max() < 7

    clip = CLIPConfig(vision_config={**sizes, "image_size": 6, "patch_size": 3}, text_config=sizes)
    model = adapted(CLIPForImageClassification(clip))
    assert probe_inputs(model)["pixel_values"].shape == (1, 3, 6, 6)
    assert model(**probe_inputs(model)).logits.shape[0] == 1

    config = qpeft.QPAConfig(r=2, target_modules=["0"], chunk_size=8, hidden=(1,), n_layers=1)
    without = get_peft_model(nn.Sequential(nn.Linear(16, 16)), config)
    with pytest.raises(ConfigError, match="no built-in probe for Sequential"):
        qpeft.export(without, tmp_path / "exported")


# -- what has no adapter

USES_OF_AN_ADAPTER = {
    "export": lambda model, folder: qpeft.export(model, folder),
    "save": lambda model, folder: qpeft.save(model, folder),
    "attach": lambda model, _: qpeft.attach(model, qpeft.QPAGeneratorConfig()),
    "set_backend": lambda model, _: qpeft.set_backend(model, shots=100),
    "fit_frames": lambda model, _: qpeft.fit_frames(model, []),
}
USES_OF_A_MODEL = {
    "load": lambda model, folder: qpeft.load(model, folder),
    "pool": lambda model, folder: qpeft.AdapterPool(model, folder),
    "param_groups": lambda model, _: qpeft.param_groups(model, 1e-3),
}


@pytest.mark.parametrize("use", USES_OF_AN_ADAPTER | USES_OF_A_MODEL)
def test_what_is_no_model_or_has_no_adapter_is_refused(use, gpt2, tmp_path):
    given = {None: "NoneType", "gpt2": "got str", GPT2LMHeadModel: "got type"}
    given |= {gpt2: "GPT2LMHeadModel has no adapter"} if use in USES_OF_AN_ADAPTER else {}
    for model, named in given.items():
        with pytest.raises(ConfigError, match=named):
            (USES_OF_AN_ADAPTER | USES_OF_A_MODEL)[use](model, tmp_path / "new")

    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match="plan takes the config of an adapter"):
        qpeft.plan(gpt2, "qpa")


# -- cards


def test_only_a_name_on_the_hub_is_in_the_front_matter():
    for base in (
        "x\nlicense: mit",
        "x\n---\n# Trusted",
        "a: b",
        "- x",
        "x" * 5000,
        "a\0b",
        "../x",
        "",
    ):
        assert yaml.safe_load(metadata(base, "lora")) == {
            "library_name": "peft",
            "tags": ["lora", "qpeft"],
        }
    for base in ("org/some-base.v1", "null", "2024-01-01"):
        assert yaml.safe_load(metadata(base, "lora"))["base_model"] == base


@pytest.mark.parametrize("put", [qpeft.save, qpeft.export])
@pytest.mark.parametrize(
    "change", [b"%s\nmy notes\n", b"# caf\xe9\n", b"---\nfoo: [1\n---\n# mine\n", None]
)
def test_card_that_the_user_wrote_or_changed_is_kept(put, change, llama, adapters, tmp_path):
    model = adapters.qpa(llama, target_modules=["q_proj"])
    path = tmp_path / "adapter" / "README.md"
    put(model, path.parent)
    made = path.read_bytes()
    if change is not None:
        path.write_bytes(change.replace(b"%s", made))
    kept = path.read_bytes()
    put(model, path.parent)

    assert path.read_bytes() == kept
    assert (kept == made) == (change is None)


@pytest.mark.parametrize("folder", ["", "/models"])
def test_lines_that_load_an_adapter_of_a_gguf_base_name_its_folder_and_file(folder):
    lines = load_lines(os.path.join(folder, "base.gguf"), "/adapters/mine", None)  # noqa: PTH118
    call = lines.splitlines()[-1]
    assert f"from_pretrained({folder or '.'!r}, dtype='float32', gguf_file='base.gguf')" in call
    assert call.endswith("'/adapters/mine')")


def test_card_with_the_classes_behind_its_last_line_is_no_users(llama, adapters, tmp_path):
    """As release 0.2 wrote it."""
    qpeft.save(adapters.qpa(llama, target_modules=["q_proj"]), tmp_path)
    with (tmp_path / "README.md").open("a") as card:
        card.write("\n## Outputs\n\n0: `a`, 1: `b`\n")
    assert users_card(tmp_path) is None


def test_card_names_the_base_only_if_it_has_a_name(llama, adapters, tmp_path):
    model = adapters.qpa(llama, target_modules=["q_proj"])
    for name in ("", "org/some-base"):
        llama.name_or_path = llama.config.name_or_path = model.peft_config[
            "default"
        ].base_model_name_or_path = name
        for put, kind in ((qpeft.save, "qpa"), (qpeft.export, "lora")):
            put(model, tmp_path / name / kind)
            front = yaml.safe_load(
                (tmp_path / name / kind / "README.md").read_text(encoding="utf-8").split("---\n")[1]
            )
            assert front.get("base_model") == (name or None)
            assert front["tags"] == [kind, "qpeft"]


@pytest.mark.filterwarnings("ignore:SoRA")  # no callback here
@pytest.mark.parametrize("method", ["qpa", "sora", "cua"])
def test_active_adapter_is_exported(llama, ids, adapters, tmp_path, method):
    def config():
        return {
            "qpa": lambda: qpeft.QPAConfig(r=2),
            "sora": lambda: qpeft.SoRAConfig(r=2),
            "cua": lambda: qpeft.CUAConfig(target_modules=["q_proj"]),
        }[method]()

    base = copy.deepcopy(llama)
    model = get_peft_model(llama, config())
    model.add_adapter("customer", config())
    model.set_adapter("customer")
    adapters.train(model, ids)

    qpeft.export(model, tmp_path / "customer")

    exported = PeftModel.from_pretrained(base, tmp_path / "customer")
    torch.testing.assert_close(adapters.logits(exported, ids), adapters.logits(model, ids))
    model.base_model.set_adapter(["default", "customer"])
    with pytest.raises(ConfigError, match="are active; give adapter_name"):
        qpeft.export(model, tmp_path / "both")
