"""The card of an adapter folder."""

import pytest
import yaml
from peft import LoraConfig, get_peft_model

import qpeft
from qpeft.core.model_card import metadata


@pytest.mark.parametrize(
    "base", ["x\nlicense: mit", "x\n---\n# Trusted", "a: b", "- x", "x" * 5000, "a\0b", "../x", ""]
)
def test_name_of_a_base_adds_no_entries_to_the_front_matter(base):
    assert yaml.safe_load(metadata(base, "LoRA")) == {"library_name": "peft", "tags": ["lora", "qpeft"]}


def test_base_on_the_hub_is_in_the_front_matter():
    assert yaml.safe_load(metadata("org/some-base.v1", "LoRA"))["base_model"] == "org/some-base.v1"


CONFIGS = {
    "qpa": lambda: qpeft.QPAConfig(r=2, chunk_size=32, target_modules=["q_proj"]),
    "quantum_peft": lambda: qpeft.QuantumPeftConfig(r=2, target_modules=["q_proj"]),
    "sora": lambda: qpeft.SoRAConfig(r=2, target_modules=["q_proj"]),
    "qaa": lambda: qpeft.QAAConfig(target_modules=["q_proj"]),
    "bottleneck": lambda: qpeft.BottleneckConfig(bottleneck_size=2),
    "attached": lambda: LoraConfig(r=2, target_modules=["q_proj"]),
}


@pytest.mark.parametrize("write", ["save", "export"])
@pytest.mark.parametrize("change", [b"%s\nmy notes\n", b"# caf\xe9\n", b"---\nfoo: [1\n---\n# mine\n", None])
def test_card_that_the_user_wrote_or_changed_is_kept(write, change, llama, tmp_path):
    model = get_peft_model(llama, CONFIGS["qpa"]())
    put = getattr(qpeft, write)
    put(model, tmp_path / "adapter")
    path = tmp_path / "adapter" / "README.md"
    made = path.read_bytes()
    if change is not None:
        path.write_bytes(change.replace(b"%s", made))
    kept = path.read_bytes()
    put(model, tmp_path / "adapter")
    assert path.read_bytes() == kept
    assert (kept == made) == (change is None)


@pytest.mark.parametrize("name", ["", "org/some-base", "null", "2024-01-01"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_card_names_the_base_only_if_it_has_a_name(kind, name, llama, tmp_path):
    llama.name_or_path = llama.config.name_or_path = name
    model = get_peft_model(llama, CONFIGS[kind]())
    if kind == "attached":
        model = qpeft.attach(model, qpeft.QPAGeneratorConfig(chunk_size=32))
    qpeft.save(model, tmp_path / "compact")
    if kind not in ("qaa", "bottleneck"):
        qpeft.export(model, tmp_path / "exported")
    for card in tmp_path.glob("*/README.md"):
        front = yaml.safe_load(card.read_text(encoding="utf-8").split("---\n")[1])
        assert front.get("base_model") == (name or None)
    assert (tmp_path / "compact/README.md").is_file()
