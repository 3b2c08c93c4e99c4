"""The compact adapter: round trips, and errors for damaged or foreign folders."""

import copy
import shutil
from pathlib import Path

import pytest
import tiny_models
import torch
from folders import edit_config, rewrite
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import save_file
from variants import VARIANTS, kinds_first, move

import qpeft
from qpeft.errors import CheckpointError
from qpeft.files import read_json


@pytest.fixture(scope="module")
def once(tmp_path_factory, adapters):
    torch.manual_seed(0)
    clean = tiny_models.llama()
    folder = tmp_path_factory.mktemp("saved")
    model = adapters.train(adapters.qpa(copy.deepcopy(clean)), torch.arange(9)[None])
    qpeft.save(model, folder / "compact")
    return clean, model, folder / "compact"


@pytest.fixture
def saved(once, tmp_path):
    """(clean base, trained model, its compact folder)."""
    clean, model, folder = once
    return copy.deepcopy(clean), copy.deepcopy(model), shutil.copytree(folder, tmp_path / "compact")


def test_base_on_the_meta_device_gives_equal_values(saved):
    clean, model, folder = saved
    loaded = qpeft.load(clean.to("meta"), folder)
    values = [one.base_model.generators.bindings["default"].values() for one in (loaded, model)]
    for ours, theirs in zip(*values, strict=True):
        assert torch.equal(ours, theirs)


def test_load_reads_the_config_and_hashes_the_weights_once(saved, monkeypatch):
    """PEFT and safetensors open the weights by other means."""
    clean, _, folder = saved
    opened = []

    def noted(function):
        def call(path, *arguments, **options):
            opened.append(Path(path).name)
            return function(path, *arguments, **options)

        return call

    monkeypatch.setattr("builtins.open", noted(open))  # PEFT's way
    monkeypatch.setattr(Path, "open", noted(Path.open))
    qpeft.load(clean, folder)

    assert opened.count("adapter_config.json") == 1
    assert opened.count("adapter_model.safetensors") == 1


def test_saving_again_replaces_the_folder(saved, ids, adapters):
    clean, model, folder = saved
    qpeft.save(adapters.train(model, ids), folder)
    assert torch.equal(
        adapters.logits(qpeft.load(clean, folder).eval(), ids), adapters.logits(model, ids)
    )
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_full_disk_keeps_the_old_folder(saved, monkeypatch):
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
    "damage, message",
    [
        (lambda f: shutil.rmtree(f), "no adapter folder at"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), r"there is no .*/adapter_model\.safetensors"),
        (lambda f: (f / "adapter_config.json").unlink(), r"there is no .*/adapter_config\.json"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "is not the JSON of a PEFT config"),
        (lambda f: (f / "adapter_config.json").write_text("[]"), "is not the JSON of a PEFT config"),
        (lambda f: edit_config(f, peft_type="QPEFT_TOMORROW"), "unknown peft_type 'QPEFT_TOMORROW'"),
        (lambda f: edit_config(f, format_version=99), "format version 99"),
        (lambda f: edit_config(f, mlp_scale=3.0), "has other initial values or settings"),
        *(
            (lambda f, table=table: edit_config(f, generated=table), "generates other tensors")
            for table in ([1, 2], [], [["x", [-1]]], [[10**8, 16]])
        ),
        *((lambda f, one=one: edit_config(f, base_digest=one), "base_digest") for one in ("abc", ["a:b:c"])),
        (lambda f: edit_config(f, format_version="x"), "has format version 'x'"),
        (lambda f: edit_config(f, seed=1), "has other initial values or settings"),
        (lambda f: edit_config(f, n_layers=2), r"expected \[1, 2, \d+\]; .* --ansatz"),
        (lambda f: edit_config(f, target_modules=["q_proj"]), "generates other tensors"),
        (lambda f: edit_config(f, r=3), "generates other tensors"),
        (lambda f: cut(f / "adapter_model.safetensors"), "is damaged or cut off"),
        (lambda f: save_file({}, f / "adapter_model.safetensors"), "contains no tensors"),
        (lambda f: flip_last_bit(f / "adapter_model.safetensors"), "is not the file that was saved"),
        (lambda f: edit_config(f, peft_type="\ud800"), r"unknown peft_type '\\ud800'"),
        (lambda f: edit_config(f, target_modules=5), "adapter_config.json"),
        (lambda f: give_twice(f / "adapter_config.json", "lora_alpha"), "the key 'lora_alpha' occurs twice"),
        (lambda f: rewrite(f, lambda t: {**t, "foreign": torch.ones(1)}), "unknown .*'foreign'"),
        (lambda f: rewrite(f, lambda t: dict(list(t.items())[1:])), "missing .*it is damaged"),
        (lambda f: rewrite(f, lambda t: {**t, "base_model.qpeft_generator.more": torch.ones(1)}), "unknown .*'more'"),
        (lambda f: rewrite(f, lambda t: {k: v if "angles" in k or v.dim() < 2 else v[:-1] for k, v in t.items()}),
         "has shape"),
        (lambda f: rewrite(f, lambda t: {k: v * torch.nan if v.dtype.is_floating_point else v for k, v in t.items()}),
         "contains NaN or Inf"),
        (lambda f: edit_config(f, generated=read_json(f / "adapter_config.json")["generated"][::-1]),
         "has other initial values or settings"),
    ],
)  # fmt: skip
def test_damaged_folder_raises_and_leaves_the_base_as_it_was(saved, ids, damage, message):
    clean, _, folder = saved
    hook = clean.register_forward_hook(lambda *_: None)
    before = state_of(clean)
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        qpeft.load(clean, folder)
    assert state_of(clean) == before
    hook.remove()  # its dict is still that of the module
    assert not clean._forward_hooks


def state_of(model):
    """Of each module the identity of its attributes, and the content of those that are dicts."""
    return [(name, parameter.requires_grad) for name, parameter in model.named_parameters()] + [
        (name, key, id(value), [*value.items()] if isinstance(value, dict) else None)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
    ]


@pytest.mark.parametrize(
    "config",
    [
        lambda: LoraConfig(r=2, init_lora_weights=False, target_modules="all-linear"),
        lambda: qpeft.QuantumPeftConfig(r=2),
        lambda: qpeft.CUAConfig(target_modules=["q_proj"]),
        lambda: PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    ],
)
def test_base_is_as_before_after_an_error_while_any_kind_of_adapter_is_loaded(
    llama, ids, tmp_path, config, monkeypatch
):
    base = copy.deepcopy(llama)
    before = state_of(base)
    qpeft.save(get_peft_model(llama, config()), tmp_path)
    load = PeftModel.load_adapter

    def interrupted(*args, **kwargs):
        load(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(PeftModel, "load_adapter", interrupted)
    with pytest.raises(KeyboardInterrupt):
        qpeft.load(base, tmp_path)
    assert state_of(base) == before


def give_twice(path, key):
    """The second value counts for most readers, the first for some."""
    path.write_text(path.read_text().replace(f'"{key}":', f'"{key}": 1, "{key}":', 1))


def flip_last_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def test_load_adapter_of_another_seed_raises_and_changes_nothing(saved, ids, adapters):
    clean, _, folder = saved
    other = adapters.qpa(clean, seed=1)
    before = adapters.logits(other, ids)
    with pytest.raises(CheckpointError, match="has other initial values or settings"):
        other.load_adapter(str(folder), "default")
    assert torch.equal(adapters.logits(other, ids), before)


OF_BASE = "base_model.model.model.layers.0.post_attention_layernorm.weight"


@pytest.mark.parametrize("name", kinds_first(VARIANTS))
def test_weight_of_the_base_in_the_file_is_refused(llama, tmp_path, name):
    """It replaced that of the base, below every adapter of the model."""
    refuse_weight_of_the_base(llama, tmp_path, name, qpeft.load)


@pytest.mark.parametrize("name", ["qpa", "sora", "cua"])
def test_peft_refuses_a_weight_of_the_base_too(llama, tmp_path, name):
    refuse_weight_of_the_base(llama, tmp_path, name, PeftModel.from_pretrained)


def refuse_weight_of_the_base(llama, tmp_path, name, load):
    qpeft.save(VARIANTS[name].adapt(copy.deepcopy(llama)), tmp_path / "a")
    rewrite(tmp_path / "a", lambda tensors: {**tensors, OF_BASE: torch.zeros(16)})
    before = llama.model.layers[0].post_attention_layernorm.weight.clone()
    with pytest.raises(CheckpointError, match=r"unknown .*post_attention_layernorm"):
        load(llama, tmp_path / "a")
    assert torch.equal(llama.model.layers[0].post_attention_layernorm.weight, before)


@pytest.mark.parametrize("name", ["qpa", "quantum_peft", "qaa", "cua", "attached to lora"])
@pytest.mark.parametrize(
    "changes",
    [{"modules_to_save": ["ln_f"]}, {"trainable_token_indices": {"wpe": [1, 2]}}],
    ids=str,
)
def test_copied_modules_and_trained_rows_outside_of_the_embedding_are_loaded(
    tmp_path, name, changes
):
    """They are no weights of the base, although the tensors of the adapter do not name them."""
    variant = VARIANTS[name]
    if "trainable_token_indices" in changes and name in ("qaa", "cua"):
        pytest.skip("a field of LoRA")
    base = tiny_models.gpt2()
    model = move(variant.adapt(copy.deepcopy(base), **changes))
    ids = torch.arange(9)[None]
    qpeft.save(model, tmp_path / "a")
    loaded = qpeft.load(base, tmp_path / "a")
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", ["qpa", "sora", "cua"])
def test_copied_modules_that_the_config_no_longer_names_are_refused(llama, tmp_path, name):
    model = VARIANTS[name].adapt(copy.deepcopy(llama), modules_to_save=["norm"])
    qpeft.save(model, tmp_path / "a")
    edit_config(tmp_path / "a", modules_to_save=None)
    with pytest.raises(CheckpointError, match=r"unknown .*norm"):
        qpeft.load(llama, tmp_path / "a")


def test_adapter_with_a_damaged_auto_mapping_is_saved_again(saved, tmp_path):
    clean, _, folder = saved
    edit_config(folder, auto_mapping=7, task_type=None)
    qpeft.save(qpeft.load(clean, folder), tmp_path / "again")
    assert "qpeft.load" in (tmp_path / "again" / "README.md").read_text()


def test_peft_raises_for_a_flipped_bit(saved):
    clean, model, folder = saved
    flip_last_bit(folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="is not the file that was saved"):
        PeftModel.from_pretrained(clean, folder)
    with pytest.raises(CheckpointError, match="is not the file that was saved"):
        model.load_adapter(str(folder), "second")

    edit_config(folder, weights_sha256=None, embeddings=["embed_tokens.weight"])
    (folder / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is damaged or cut off"):
        PeftModel.from_pretrained(clean, folder)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")  # PEFT's warning before the error
def test_damaged_exported_folder_raises(saved, tmp_path):
    clean, model, _ = saved
    damages = {
        "is not the file that was saved": lambda f: flip_last_bit(f / "adapter_model.safetensors"),
        "does not contain this adapter: missing": lambda f: edit_config_and_record(
            f, target_modules=["q_proj", "lm_head"]
        ),
        "'int' object.*restore its adapter_config.json": lambda f: edit_config_and_record(
            f, rank_pattern=5
        ),
    }
    for number, (message, damage) in enumerate(damages.items()):
        folder = tmp_path / f"exported{number}"
        qpeft.export(model, folder)
        damage(folder)
        with pytest.raises(CheckpointError, match=message):
            qpeft.load(copy.deepcopy(clean), folder)


def edit_config_and_record(folder, **changes):
    edit_config(folder, **changes)
    (folder / "qpeft.json").unlink()


def test_save_keeps_other_files(saved, tmp_path):
    _, model, folder = saved
    (folder / "thesis.txt").write_text("years")
    with pytest.raises(qpeft.errors.ConfigError, match=r"contains other files \(thesis\.txt\)"):
        qpeft.save(model, folder)
    assert (folder / "thesis.txt").read_text() == "years"

    (tmp_path / "home" / "default").mkdir(parents=True)  # the name of the adapter
    (tmp_path / "home" / "default" / "thesis.txt").write_text("years")
    with pytest.raises(qpeft.errors.ConfigError, match="other files"):
        qpeft.save(model, tmp_path / "home")
    with pytest.raises(qpeft.errors.ConfigError, match="is a file"):
        qpeft.save(model, folder / "thesis.txt")
    with pytest.raises(qpeft.errors.ConfigError, match=r"'adapter_name'.*selected_adapters"):
        qpeft.save(model, tmp_path / "named", adapter_name="default")

    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    qpeft.save(model, tmp_path / "link")

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "adapter_config.json").exists()
