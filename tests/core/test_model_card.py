"""The card of an adapter folder."""

import pytest
import yaml
from peft import LoraConfig, get_peft_model

import qpeft
from qpeft.core.model_card import front_matter


@pytest.mark.parametrize(
    "base", ["x\nlicense: mit", "x\n---\n# Trusted", "a: b", "- x", "x" * 5000, "a\0b", "../x", ""]
)
def test_name_of_a_base_adds_no_entries_to_the_front_matter(base):
    _, front, rest = front_matter(base, "LoRA").split("---\n")
    assert yaml.safe_load(front) == {"library_name": "peft", "tags": ["lora", "qpeft"]}
    assert not rest.strip()


def test_base_on_the_hub_is_in_the_front_matter():
    assert (
        yaml.safe_load(front_matter("org/some-base.v1", "LoRA").split("---\n")[1])["base_model"] == "org/some-base.v1"
    )


CONFIGS = {
    "qpa": lambda: qpeft.QPAConfig(r=2, chunk_size=32, target_modules=["q_proj"]),
    "quantum_peft": lambda: qpeft.QuantumPeftConfig(r=2, target_modules=["q_proj"]),
    "sora": lambda: qpeft.SoRAConfig(r=2, target_modules=["q_proj"]),
    "qaa": lambda: qpeft.QAAConfig(target_modules=["q_proj"]),
    "bottleneck": lambda: qpeft.BottleneckConfig(bottleneck_size=2),
    "attached": lambda: LoraConfig(r=2, target_modules=["q_proj"]),
}


@pytest.mark.filterwarnings("ignore:QPA trains")
@pytest.mark.parametrize("name", ["", "org/some-base"])
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
