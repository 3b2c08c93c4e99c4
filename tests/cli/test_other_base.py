"""A command whose adapter was trained on another base model of equal shapes says so once, without an option."""

import pytest
import torch
from tiny_models import save_base
from transformers import AutoModelForCausalLM


@pytest.fixture
def tuned(base_folder, tmp_path):
    """The base after a change of all its weights by a thousandth."""
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-3 * torch.randn_like(parameter))
    return save_base(tmp_path / "tuned", model)


@pytest.fixture
def commands(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The king went into the wood.\n" * 9)
    return {
        "evaluate": ["--data", text, "--seq-len", 32],
        "generate": ["--prompt", "The king", "--max-new-tokens", 3],
        "export": ["--out", tmp_path / "exported"],
    }


@pytest.mark.parametrize("command", ["evaluate", "generate", "export"])
def test_command_notes_another_base_once(qpeft_cli, base_folder, adapter_folder, tuned, commands, command):
    def output(model):
        adapter = [adapter_folder] if command == "export" else ["--adapter", adapter_folder]
        shown = qpeft_cli(command, *adapter, "--model", model, *commands[command])
        assert shown.exit_code == 0, shown.output
        return " ".join(shown.output.split())

    assert "Note:" not in output(base_folder)
    if command == "export":
        commands["export"][1] = commands["export"][1].with_name("other")
    heard = output(tuned)
    assert heard.count("was trained on the base model") == 1
    assert "with other weights" in heard
