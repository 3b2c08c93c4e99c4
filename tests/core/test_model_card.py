"""The card of an adapter folder."""

import pytest
import yaml

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
