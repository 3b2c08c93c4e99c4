"""Incomplete base models are refused from their files alone, before torch is imported."""

import json
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
from tiny_models import llama

from qpeft.errors import InputError
from qpeft_lab.base_files import check_base_files

WEIGHTS = "model.safetensors"
SHARDS = "model-00002-of-*.safetensors"


def half(folder, shards):
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-7])


def other_header(folder, shards):
    (folder / WEIGHTS).write_bytes(b"<html>No such file</html>")


def no_weights(folder, shards):
    (folder / WEIGHTS).rename(folder / f"{WEIGHTS}.incomplete")


def no_config(folder, shards):
    (folder / "config.json").unlink()


def no_shard(folder, shards):
    next(shards.glob(SHARDS)).unlink()


def half_index(folder, shards):
    index = shards / f"{WEIGHTS}.index.json"
    index.write_text(index.read_text()[:40])


@pytest.fixture
def bases(tmp_path):
    """A complete base in one file, and in several."""
    model = llama()
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    return tmp_path / "one", tmp_path / "shards"


@pytest.mark.parametrize(
    "damage, message",
    [
        (half, r"model\.safetensors has [\d,]+ of [\d,]+ bytes; copy or download it again"),
        (other_header, "is damaged; copy or download it again"),
        (
            no_weights,
            "has no file of weights .there is model.safetensors.incomplete, of a download",
        ),
        (no_config, "has no config.json: it is no base model"),
        (no_shard, "lacks model-00002-of-.*; copy or download it again"),
        (half_index, "cannot be read as JSON"),
    ],
)
def test_half_copied_base_is_refused(bases, damage, message):
    for base in bases:
        check_base_files(str(base))
    damage(*bases)
    of_shards = damage in (no_shard, half_index)
    with pytest.raises(InputError, match=message):
        check_base_files(str(bases[of_shards]))


def test_half_a_gguf_file_is_refused(tmp_path):
    gguf = pytest.importorskip("gguf")
    file = tmp_path / "base.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_custom_alignment(64)
    writer.add_token_list(["a", "b", "longer"])
    writer.add_array("numbers", [1, 2, 3])
    for name, shape in (("a", (3, 32)), ("b", (5,))):
        writer.add_tensor(name, np.ones(shape, np.float32))
    quantized = gguf.quants.quantize(np.ones((2, 32), np.float32), gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("c", quantized, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    whole = file.read_bytes()
    check_base_files(str(file))
    last = gguf.GGUFReader(file).tensors[-1]
    end = int(last.data_offset + last.n_bytes)  # the file is padded behind it
    cut = {
        whole[:end]: None,
        whole[: end - 1]: "has [0-9,]+ of [0-9,]+ bytes; copy or download it again",
        whole[:100]: "ends early; copy",
        b"<html>" + whole: "is damaged; copy",
        whole[:8] + b"\xff" * 16 + whole[24:]: "ends early|is damaged",
    }
    for content, message in cut.items():
        file.write_bytes(content)
        with pytest.raises(InputError, match=message) if message else nullcontext():
            check_base_files(str(file))


@pytest.mark.parametrize("kind", ["linear", "yarn", "frequencies", "none"])
def test_gguf_file_with_scaled_rotary_embeddings_is_refused(tmp_path, kind):
    """transformers would leave out the scaling, as of Llama 3.2, without a word."""
    gguf = pytest.importorskip("gguf")
    file = tmp_path / "base.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    if kind == "frequencies":
        writer.add_tensor("rope_freqs.weight", np.ones(8, np.float32))
    else:
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_tensor("a", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    message = rf"scales its rotary embeddings \({kind}\)"
    with nullcontext() if kind == "none" else pytest.raises(InputError, match=message):
        check_base_files(str(file))


def test_hub_id_passes_and_a_file_that_is_no_model_does_not(tmp_path):
    check_base_files("gpt2")
    check_base_files("org/model")
    (tmp_path / "model.bin").touch()
    with pytest.raises(InputError, match="is a file; give the folder of a base model, or a GGUF"):
        check_base_files(str(tmp_path / "model.bin"))


REFUSED = {  # options of train -> a part of the message
    "--lr -1": "lr must be above 0",
    "--steps 5 --epochs 2": "steps and epochs both limit the run",
    "--data absent.txt": "no file or folder absent.txt",
    "--model ./absent": "no model folder ./absent",
    "--seq-len 9000": "longer than the model's context of 256 tokens",
    "--method lroa": "did you mean 'lora'",
    "--method qpa --budget -4": "budget must be above 0",
    "--out absent.py/run": "",
    "--data chat.jsonl --model base": "the tokenizer has no chat template; set chat_template",
}


def test_refusals_that_need_no_weights_import_neither_torch_nor_peft(tmp_path):
    code = """
import contextlib, io, json, sys
from qpeft_lab.cli.app import build
texts = []
for options in json.loads(sys.argv[1]):
    usual = "train --model embedded --data numpy-docs --out run".split()
    with contextlib.redirect_stderr(io.StringIO()) as text, contextlib.suppress(SystemExit):
        build()([*usual, *options.split()])
    texts.append(text.getvalue())
print(json.dumps([texts, sorted({"torch", "transformers", "peft", "datasets"} & {*sys.modules})]))
"""
    (tmp_path / "absent.py").touch()
    (tmp_path / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    llama().save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "tokenizer_config.json").write_text("{}")
    words = [sys.executable, "-c", code, json.dumps(list(REFUSED))]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=True)
    texts, heavy = json.loads(done.stdout)
    for text, message in zip(texts, REFUSED.values(), strict=True):
        assert "Error:" in text
        assert message in text

    assert heavy == []
