"""The compact folder: a round trip in every circumstance, and a clear refusal of what cannot be right."""

import copy
import json
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch
from peft import FourierFTConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import qpeft
from qpeft.errors import CheckpointError, ConfigError

RELOAD = """
import sys, torch
torch.set_num_threads(2)
import qpeft
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = qpeft.load(AutoModelForCausalLM.from_pretrained(sys.argv[1]), sys.argv[2])
torch.save([v for v in model.base_model.binding("default").values()], sys.argv[3])
"""


@pytest.fixture
def saved(llama, ids, adapters, tmp_path):
    """(clean base, trained model, its compact folder)."""
    clean = copy.deepcopy(llama)
    model = adapters.train(adapters.qpa(llama), ids)
    qpeft.save(model, tmp_path / "compact")
    return clean, model, tmp_path / "compact"


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_file_holds_the_generator_alone(saved):
    _, model, folder = saved
    tensors = load_file(folder / "adapter_model.safetensors")
    assert tensors.pop("base_model.qpeft_generator.fingerprint").shape == (32,)
    assert sum(t.numel() for t in tensors.values()) == model.base_model.generators["default"].count.total
    assert all(k.startswith("base_model.qpeft_generator.") and k.endswith(".tau") for k in tensors)


@pytest.mark.parametrize(
    "settings",
    [
        {"vector_order": "official"},
        {"feature_source": "free"},
        {"feature_source": "none", "activation": "identity", "center_output": True},
        {"init_mode": "raw", "output_scale": 0.1, "feature_map": "squash"},
        {"seed": 11, "budget": 900, "chunk_size": None, "hidden": None},
    ],
)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_round_trip_of_settings(llama, ids, adapters, tmp_path, settings, low_cpu_mem_usage):
    clean = copy.deepcopy(llama)
    model = adapters.train(adapters.qpa(llama, **settings), ids)
    qpeft.save(model, tmp_path / "compact")
    loaded = qpeft.load(clean, tmp_path / "compact", low_cpu_mem_usage=low_cpu_mem_usage).eval()
    assert torch.equal(adapters.logits(loaded, ids), adapters.logits(model, ids))


def test_a_base_on_the_meta_device_gives_the_same_numbers(saved):
    clean, model, folder = saved
    loaded = qpeft.load(clean.to("meta"), folder)
    for ours, theirs in zip(loaded.base_model.binding("default").values(), model.base_model.binding("default").values(),
                            strict=True):  # fmt: skip
        assert torch.equal(ours, theirs)


@pytest.mark.long
def test_another_process_with_other_threads_gives_the_same_numbers(saved, tmp_path):
    clean, model, folder = saved
    clean.save_pretrained(tmp_path / "base")
    command = [sys.executable, "-c", RELOAD, tmp_path / "base", folder, tmp_path / "values.pt"]
    subprocess.run(command, check=True, capture_output=True)
    found = torch.load(tmp_path / "values.pt", weights_only=True)
    for ours, theirs in zip(found, model.base_model.binding("default").values(), strict=True):
        assert torch.equal(ours, theirs)


def test_saving_again_replaces_the_folder_whole(saved, ids, adapters):
    clean, model, folder = saved
    qpeft.save(adapters.train(model, ids), folder)
    assert torch.equal(adapters.logits(qpeft.load(clean, folder).eval(), ids), adapters.logits(model, ids))
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_full_disk_leaves_the_old_folder(saved, monkeypatch):
    _, model, folder = saved
    before = (folder / "adapter_model.safetensors").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("peft.peft_model.safe_save_file", full)
    with pytest.raises(OSError, match="No space left"):
        qpeft.save(model, folder)
    assert (folder / "adapter_model.safetensors").read_bytes() == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), "no adapter folder at"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
        (lambda f: (f / "adapter_config.json").unlink(), "has no adapter_config.json"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "is not the JSON of a PEFT config"),
        (lambda f: (f / "adapter_config.json").write_text("[]"), "is not the JSON of a PEFT config"),
        (lambda f: edit_config(f, peft_type="QPEFT_TOMORROW"), "unknown peft_type 'QPEFT_TOMORROW'"),
        (lambda f: edit_config(f, format_version=99), "format version 99, newer than the 1"),
        (lambda f: edit_config(f, mlp_scale=3.0), "another start or with other settings"),
        (lambda f: edit_config(f, activation="gelu"), "another start or with other settings"),
        (lambda f: edit_config(f, seed=1, start_hash=None), "another start or with other settings"),
        (lambda f: edit_config(f, generated=[1, 2]), "the table of generated tensors in"),
        (lambda f: edit_config(f, format_version="x"), "has format version x"),
        (lambda f: edit_config(f, seed=1), "the initial values drawn from seed 1 have hash"),
        (lambda f: edit_config(f, start_hash={"a": 1}), "the checkpoint was trained from {'a': 1}"),
        (lambda f: edit_config(f, n_layers=2), "the initial values drawn from seed 0 have hash"),
        (lambda f: edit_config(f, target_modules=["q_proj"]), "saved table does not match this model"),
        (lambda f: edit_config(f, r=3), r"does not match this model: .* has shape \[4, 16\], expected \[3, 16\]"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b""), "is damaged or cut off"),
        (lambda f: cut(f / "adapter_model.safetensors"), "is damaged or cut off"),
        (lambda f: save_file({}, f / "adapter_model.safetensors"), "holds no tensors"),
        (lambda f: flip_last_bit(f / "adapter_model.safetensors"), "is not the file that was saved"),
        (lambda f: (f / "adapter_config.json").write_text("[" * 100_000), "nested too deeply"),
        (lambda f: edit_config(f, peft_type="\ud800"), r"unknown peft_type '\\ud800'"),
        (lambda f: edit_config(f, target_modules=5), "adapter_config.json"),
        (lambda f: rewrite(f, lambda t: {**t, "foreign": torch.ones(1)}), "tensors that this model has not: foreign"),
        (lambda f: rewrite(f, lambda t: dict(list(t.items())[1:])), "missing .*it is damaged"),
        (lambda f: rewrite(f, lambda t: {**t, "base_model.qpeft_generator.more": torch.ones(1)}), "unknown .*'more'"),
        (lambda f: rewrite(f, lambda t: {k: v[:-1] if v.dim() > 1 else v for k, v in t.items()}), "has shape"),
        (lambda f: rewrite(f, lambda t: {k: v * torch.nan if v.dtype.is_floating_point else v for k, v in t.items()}),
         "contains NaN or Inf"),
        (lambda f: rewrite(f, lambda t: {"foreign": torch.ones(2)}), "missing"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused(saved, damage, message):
    clean, _, folder = saved
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        qpeft.load(clean, folder)


def flip_last_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def rewrite(folder, change):
    path = folder / "adapter_model.safetensors"
    save_file({k: v.contiguous() for k, v in change(load_file(path)).items()}, path)
    edit_config(folder, weights_sha256=None)  # meant: what is refused is what the tensors say


def test_another_base_model_is_refused(saved, gpt2):
    _, _, folder = saved
    with pytest.raises(CheckpointError, match=r"belongs to another base model|does not match this model"):
        qpeft.load(gpt2, folder)


def test_weights_of_another_start_do_not_enter_a_living_adapter(saved, ids, adapters):
    """Neither by load_adapter nor, as a Trainer resumes, over an adapter built with another seed."""
    clean, _, folder = saved
    other = adapters.qpa(clean, seed=1)
    before = adapters.logits(other, ids)
    with pytest.raises(CheckpointError, match="another start or with other settings"):
        other.load_adapter(str(folder), "default")
    assert torch.equal(adapters.logits(other, ids), before)


@pytest.mark.parametrize(
    "change",
    [{"base_model_name_or_path": 5}, {"base_model_name_or_path": "\ud800"}, {"megatron_config": {"a": 1}}],
)
def test_what_peft_would_stumble_over_later_is_refused(saved, change):
    clean, _, folder = saved
    edit_config(folder, **change)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json has"):
        PeftModel.from_pretrained(clean, folder)


def test_peft_alone_sees_a_flipped_bit_as_well(saved):
    clean, model, folder = saved
    flip_last_bit(folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="is not the file that was saved"):
        PeftModel.from_pretrained(clean, folder)
    with pytest.raises(CheckpointError, match="is not the file that was saved"):
        model.load_adapter(str(folder), "second")


TINY_QPA = {"chunk_size": 8, "hidden": (4,), "budget": None}
WITHOUT_EFFECT = [0, 1e400, -1e400, float("nan"), 1e-300, 10**400, "16", True]


@pytest.mark.filterwarnings("ignore:QPA trains")  # the model is tiny
@pytest.mark.parametrize("config", [partial(qpeft.QPAConfig, **TINY_QPA), qpeft.QuantumPeftConfig, qpeft.SoRAConfig])
def test_an_adapter_multiplied_by_nothing_is_refused_in_a_config_and_in_a_file(llama, tmp_path, config):
    qpeft.save(get_peft_model(copy.deepcopy(llama), config(r=2, target_modules=["q_proj"])), tmp_path / "it")
    living = qpeft.load(copy.deepcopy(llama), tmp_path / "it")
    for factor in WITHOUT_EFFECT:
        for change in ({"lora_alpha": factor}, {"alpha_pattern": {"q_proj": factor}}):
            with pytest.raises(ConfigError, match="multiplies the adapter"):
                config(target_modules=["q_proj"], **change)
            shutil.copytree(tmp_path / "it", tmp_path / "edited", dirs_exist_ok=True)
            edit_config(tmp_path / "edited", **change)
            with pytest.raises(CheckpointError, match=r"adapter_config.json: .*multiplies the adapter"):
                PeftModel.from_pretrained(copy.deepcopy(llama), tmp_path / "edited")
            with pytest.raises(CheckpointError, match=r"adapter_config.json: .*multiplies the adapter"):
                living.load_adapter(tmp_path / "edited", "second")


@pytest.mark.filterwarnings("ignore:QPA trains")
@pytest.mark.parametrize("host", [LoraConfig(r=2, lora_alpha=0), FourierFTConfig(n_frequency=8, scaling=0.0)])
def test_nothing_is_attached_to_an_adapter_multiplied_by_nothing(llama, host):
    host.target_modules = {"q_proj"}
    with pytest.raises(ConfigError, match="multiplies the adapter"):
        qpeft.attach(get_peft_model(copy.deepcopy(llama), host), qpeft.QPAGeneratorConfig(**TINY_QPA))


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")  # PEFT's, before ours is raised
def test_an_exported_folder_is_whole_and_acts_or_is_refused(saved, tmp_path):
    clean, model, _ = saved
    damages = {
        "is not the file that was saved": lambda f: flip_last_bit(f / "adapter_model.safetensors"),
        "does not hold this adapter: missing": lambda f: edit_config(f, target_modules=["q_proj", "k_proj", "lm_head"]),
        "multiplies the adapter of": lambda f: edit_config(f, lora_alpha=0),
        "restore its adapter_config.json": lambda f: edit_config(f, rank_pattern=5),
        "restore the list of token ids": lambda f: edit_config(f, alora_invocation_tokens=["the"]),
    }
    for number, (message, damage) in enumerate(damages.items()):
        folder = tmp_path / f"exported{number}"
        qpeft.export(model, folder)
        damage(folder)
        with pytest.raises(CheckpointError, match=message):
            qpeft.load(copy.deepcopy(clean), folder)


def test_saving_never_removes_what_is_not_ours(saved, tmp_path):
    _, model, folder = saved
    (folder / "thesis.txt").write_text("years")
    with pytest.raises(qpeft.errors.ConfigError, match=r"holds other files \(thesis\.txt\)"):
        qpeft.save(model, folder)
    assert (folder / "thesis.txt").read_text() == "years"
    with pytest.raises(qpeft.errors.ConfigError, match="is a file"):
        qpeft.save(model, folder / "thesis.txt")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    qpeft.save(model, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "adapter_config.json").exists()


def test_the_users_own_card_stays(saved):
    _, model, folder = saved
    assert "loading it needs qpeft" in (folder / "README.md").read_text()
    (folder / "README.md").write_text("# My own card")
    model.save_pretrained(folder)
    assert "My own card" in (folder / "README.md").read_text()
    qpeft.save(model, folder)
    assert "My own card" in (folder / "README.md").read_text()
