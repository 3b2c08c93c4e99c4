"""`qpeft export`: the export loads with stock libraries and gives the logits of the adapter."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import qpeft
from qpeft.cli import stock_process
from qpeft.errors import VerificationError

IDS = torch.arange(20).reshape(2, 10)


def load_base(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_export_is_stock_and_verified_without_qpeft(qpeft_cli, base_folder, adapter_folder, tmp_path):
    out = tmp_path / "exported"
    result = qpeft_cli("export", adapter_folder, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["max_logit_difference"] <= 1e-6
    assert json.loads((out / "adapter_config.json").read_text())["peft_type"] == "LORA"
    live = qpeft.load(load_base(base_folder), adapter_folder).eval()
    stock = PeftModel.from_pretrained(load_base(base_folder), str(out)).eval()
    torch.testing.assert_close(logits(stock), logits(live), rtol=0, atol=1e-6)
    loaded: dict = {}
    exec(found["load"], loaded)
    assert torch.equal(logits(loaded["model"].eval()), logits(stock))
    assert found["path"] == str(out)
    assert qpeft_cli("export", adapter_folder, "--out", out).exit_code == 0  # it replaces itself
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tied_head_is_merged_only_with_untie(qpeft_cli, base_folder, head_adapter_folder, tmp_path):
    out = tmp_path / "merged"
    refused = qpeft_cli("export", head_adapter_folder, "--out", out, "--merge")
    assert refused.exit_code == 2
    assert "--untie" in refused.stderr
    assert not any(tmp_path.iterdir())
    result = qpeft_cli("export", head_adapter_folder, "--out", out, "--merge", "--untie")
    assert result.exit_code == 0, result.output
    live = qpeft.load(load_base(base_folder), head_adapter_folder).eval()
    torch.testing.assert_close(logits(load_base(out)), logits(live), rtol=0, atol=1e-4)
    assert torch.equal(
        load_base(out).get_input_embeddings().weight, load_base(base_folder).get_input_embeddings().weight
    )
    again = qpeft_cli("export", head_adapter_folder, "--out", out, "--merge", "--untie")
    assert again.exit_code == 2
    assert "contains other files" in again.stderr


def test_failed_verification_writes_nothing(qpeft_cli, adapter_folder, tmp_path, monkeypatch):
    wrong = lambda base, adapter, ids, **options: torch.zeros(*ids.shape, 257)  # noqa: E731
    monkeypatch.setattr("qpeft.cli.export.stock_logits", wrong)
    result = qpeft_cli("export", adapter_folder, "--out", tmp_path / "exported")
    assert result.exit_code == 1
    assert "without qpeft the logits differ" in result.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("failure", "code"), [(VerificationError("it does not load"), 1), (KeyboardInterrupt(), 130)])
def test_failed_verification_keeps_the_earlier_export(qpeft_cli, adapter_folder, tmp_path, monkeypatch, failure, code):
    out = tmp_path / "exported"
    earlier = {"qpeft.json": b"{}", "adapter_model.safetensors": b"good"}
    out.mkdir()
    for name, content in earlier.items():
        (out / name).write_bytes(content)
    seen = []

    def fails(base, adapter, ids, **options):
        seen.append((adapter / "adapter_model.safetensors").stat().st_size)
        raise failure

    monkeypatch.setattr("qpeft.cli.export.stock_logits", fails)
    assert qpeft_cli("export", adapter_folder, "--out", out).exit_code == code
    assert seen[0] > len(b"good")  # the new export was there to be checked
    assert {file.name: file.read_bytes() for file in out.iterdir()} == earlier
    assert list(tmp_path.iterdir()) == [out]


def test_verification_process_cannot_import_qpeft(base_folder, monkeypatch):
    script = stock_process._SCRIPT.split("import torch")[0] + "import qpeft"
    monkeypatch.setattr(stock_process, "_SCRIPT", script)
    with pytest.raises(VerificationError, match=r"import of qpeft halted|No module named"):
        stock_process.stock_logits(str(base_folder), None, IDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{base}", "--out", "{out}"], "no adapter at"),
        (["{adapter}", "--out", "{out}", "--untie"], "--untie changes the base model"),
        (["{adapter}", "--out", "{base}"], "not an earlier export"),
        (["{adapter}", "--out", "{base}", "--merge"], "contains other files"),
        (["{adapter}", "--out", "{out}", "--model", "{out}/nowhere"], "nowhere"),
    ],
)
def test_bad_input_exits_with_code_2(qpeft_cli, base_folder, adapter_folder, tmp_path, arguments, message):
    places = {"base": base_folder, "adapter": adapter_folder, "out": tmp_path / "out"}
    result = qpeft_cli("export", *(a.format(**places) for a in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert not any(tmp_path.iterdir())


def test_stock_adapter_is_refused(qpeft_cli, base_folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    get_peft_model(load_base(base_folder), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    result = qpeft_cli("export", tmp_path / "lora", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "is a stock LORA adapter, which plain PEFT loads already" in result.stderr
    assert "Loads in vLLM: yes, if vLLM supports LoRA for the architecture; in TRL's vLLM sync: yes" in result.stderr
    weights = tmp_path / "lora" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    damaged = qpeft_cli("export", tmp_path / "lora", "--out", tmp_path / "out")
    assert damaged.exit_code == 2
    assert "is damaged or cut off" in damaged.stderr


@pytest.mark.parametrize("damage", ["truncated", "no json", "nan"])
def test_damaged_adapter_is_refused(qpeft_cli, adapter_folder, tmp_path, damage):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in adapter_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = folder / "adapter_model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "no json":
        (folder / "adapter_config.json").write_text("{")
    else:
        tensors = load_file(weights).items()
        save_file({k: v * float("nan") if v.dtype.is_floating_point else v for k, v in tensors}, weights)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "weights_sha256": None}))
    result = qpeft_cli("export", folder, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert {"truncated": "damaged", "no json": "not the JSON", "nan": "NaN"}[damage] in result.stderr
    assert not (tmp_path / "out").exists()
