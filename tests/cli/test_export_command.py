"""`qpeft export`: the export loads with stock libraries and gives the logits of the adapter."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import qpeft
from qpeft.errors import VerificationError
from qpeft_lab.cli.export import stock_logits

IDS = torch.arange(20).reshape(2, 10)


def load_base(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_export_is_stock_and_verified_without_qpeft(answer, base_folder, adapter_folder, tmp_path):
    out = tmp_path / "exported"
    found = answer("export", adapter_folder, "--out", out)
    assert found["max_logit_difference"] <= 1e-6
    assert json.loads((out / "adapter_config.json").read_text())["peft_type"] == "LORA"
    live = qpeft.load(load_base(base_folder), adapter_folder).eval()
    stock = PeftModel.from_pretrained(load_base(base_folder), str(out)).eval()
    torch.testing.assert_close(logits(stock), logits(live), rtol=0, atol=1e-6)
    loaded: dict = {}
    exec(found["load"], loaded)
    assert torch.equal(logits(loaded["model"].eval()), logits(stock))
    assert found["path"] == str(out)
    answer("export", adapter_folder, "--out", out)  # it replaces itself
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
    assert qpeft_cli("export", head_adapter_folder, "--out", out, "--merge", "--untie").exit_code == 2  # it is there


@pytest.mark.parametrize(("failure", "code"), [(VerificationError("it does not load"), 1), (KeyboardInterrupt(), 130)])
def test_failed_verification_keeps_the_earlier_export(qpeft_cli, adapter_folder, tmp_path, monkeypatch, failure, code):
    out = tmp_path / "exported"
    earlier = {"qpeft.json": b"{}", "adapter_model.safetensors": b"good"}
    out.mkdir()
    for name, content in earlier.items():
        (out / name).write_bytes(content)
    seen = []

    def fails(base, adapter, inputs, *_, **__):
        seen.append((adapter / "adapter_model.safetensors").stat().st_size)
        raise failure

    monkeypatch.setattr("qpeft_lab.cli.export.stock_logits", fails)
    assert qpeft_cli("export", adapter_folder, "--out", out).exit_code == code
    assert seen[0] > len(b"good")  # the new export was there to be checked
    assert {file.name: file.read_bytes() for file in out.iterdir()} == earlier
    assert list(tmp_path.iterdir()) == [out]


def test_verification_process_cannot_import_qpeft(base_folder, monkeypatch):
    from qpeft_lab.cli.export import _STOCK

    monkeypatch.setattr("qpeft_lab.cli.export._STOCK", _STOCK.split("import torch")[0] + "import qpeft")
    with pytest.raises(VerificationError, match=r"import of qpeft halted|No module named"):
        stock_logits(str(base_folder), None, {"input_ids": IDS})


def test_stock_adapter_is_refused(qpeft_cli, base_folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    get_peft_model(load_base(base_folder), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    result = qpeft_cli("export", tmp_path / "lora", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "LORA" in result.stderr


def damage_config(folder):
    (folder / "adapter_config.json").write_text("{")


def cut_weights(folder):
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])


@pytest.mark.parametrize("damage", [damage_config, cut_weights])
def test_damaged_adapter_is_refused(qpeft_cli, adapter_folder, tmp_path, damage):
    damage(folder := shutil.copytree(adapter_folder, tmp_path / "damaged"))
    assert qpeft_cli("export", folder, "--out", tmp_path / "out").exit_code == 2
    assert not (tmp_path / "out").exists()


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks for when it uploads a folder, and the files that it sent."""

    def log_message(self, *_):
        pass

    def _answer(self, found):
        body = json.dumps(found).encode()
        self.send_response(200 if self.server.works else 403)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self._answer({"id": "me/mine", "sha": "0" * 40, "siblings": [], "name": "me", "type": "user"})

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, content))
        url = f"http://localhost:{self.server.server_port}/me/mine"
        if self.path.endswith("/repos/create"):
            self._answer({"url": url, "name": "me/mine"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(content)["files"]]
            self._answer({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        else:
            self._answer({"commitUrl": f"{url}/commit/1", "commitOid": "1" * 40, "pullRequestUrl": None})


@pytest.mark.parametrize("works", [True, False])
def test_export_is_uploaded(adapter_folder, tmp_path, works):
    """In a process of its own: the address of the hub is read when huggingface_hub is imported."""
    with ThreadingHTTPServer(("localhost", 0), Hub) as server:
        server.works, server.asked = works, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub = {"HF_ENDPOINT": f"http://localhost:{server.server_port}", "HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "0"}
        command = ["export", adapter_folder, "--out", tmp_path / "out", "--push-to-hub", "me/mine", "--json"]
        words = [sys.executable, "-m", "qpeft", *map(str, command)]
        ended = subprocess.run(words, env={**os.environ, **hub}, capture_output=True, text=True)
        server.shutdown()
    found = json.loads(ended.stdout)
    assert (tmp_path / "out" / "adapter_config.json").is_file()
    if not works:
        assert (ended.returncode, found["error"]) == (1, "QpeftError")
        assert "me/mine" in found["message"]
        return
    assert ended.returncode == 0, ended.stderr
    assert found["url"] == f"http://localhost:{server.server_port}/me/mine"
    (lines,) = [content.splitlines() for path, content in server.asked if "/commit/" in path]
    files = {row["value"]["path"]: row["value"]["content"] for row in map(json.loads, lines) if row["key"] == "file"}
    assert base64.b64decode(files["adapter_config.json"]) == (tmp_path / "out" / "adapter_config.json").read_bytes()
    assert files.keys() >= {"adapter_model.safetensors", "README.md"}
