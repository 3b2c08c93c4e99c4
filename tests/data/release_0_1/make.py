"""Adapters, runs and a study as release 0.1 wrote them. Run once, with 0.1 installed; the folders are test data now.

    PYTHONPATH=.../qpeft-0.1/src:tests/support python tests/data/release_0_1/make.py

Only public names of qpeft are used here.
"""

from __future__ import annotations

import copy
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tiny_models import make_text, seeded_gpt2, seeded_llama
from transformers import GenerationConfig

import qpeft

HERE = Path(__file__).resolve().parent
BASES: dict[str, Callable[[], Any]] = {"gpt2": seeded_gpt2, "llama": seeded_llama}
IDS = torch.tensor([[3, 14, 15, 9, 2, 6, 5, 35, 8], [27, 18, 28, 18, 28, 45, 9, 4, 5]])
ATTENTION = ["q_proj", "v_proj"]
TASK: dict[str, Any] = {"task_type": "CAUSAL_LM"}
QPA: dict[str, Any] = {"hidden": (6, 5), "chunk_size": 16, "n_layers": 3, "seed": 1}
FRAMES_NOT_STORED = "quantum_peft_frames_not_stored"  # loading needs fit_frames with the same batches


def _qpa(**settings: Any) -> Callable[[Any], Any]:
    fields = {**TASK, "r": 2, "target_modules": [*ATTENTION, "down_proj"], **QPA, **settings}
    return lambda base: get_peft_model(base, qpeft.QPAConfig(**fields))


def _quantum_peft(preset: str | None = None, **settings: Any) -> Callable[[Any], Any]:
    make = getattr(qpeft.QuantumPeftConfig, preset) if preset else qpeft.QuantumPeftConfig
    fields = {**TASK, "r": 3, "lora_alpha": 2, "target_modules": [*ATTENTION, "down_proj"], "seed": 2, **settings}

    def adapt(base: Any) -> Any:
        model = get_peft_model(base, make(**fields))
        if "gradient" in (settings.get("frame"), settings.get("start")):
            qpeft.fit_frames(model, [{"input_ids": IDS}])
        return model

    return adapt


def _tuner(config: Callable[..., Any], **settings: Any) -> Callable[[Any], Any]:
    return lambda base: get_peft_model(base, config(**{**TASK, **settings}))


def _attached(host: str, settings: dict[str, Any] | None = None, **generator: Any) -> Callable[[Any], Any]:
    kind = qpeft.BottleneckConfig if host == "Bottleneck" else getattr(peft, f"{host}Config")
    config = kind(**{**TASK, **(settings or {})})
    generator = {**QPA, **generator}
    return lambda base: qpeft.attach(get_peft_model(base, copy.deepcopy(config)), qpeft.QPAGeneratorConfig(**generator))


# folder -> the base model, and what puts the adapter on it
ADAPTERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "qpa": ("llama", _qpa()),
    "qpa_default_network": ("llama", _qpa(hidden=None, chunk_size=None, budget=0.9, r=8, target_modules="all-linear")),
    "qpa_conv1d": ("gpt2", _qpa(target_modules=["c_attn", "c_proj", "c_fc"])),
    "qpa_dora": ("llama", _qpa(use_dora=True)),
    "qpa_official": ("llama", lambda base: get_peft_model(base, qpeft.QPAConfig.official(chunk_size=64, **TASK))),
    "qpa_gelu_squash": ("llama", _qpa(activation="gelu", feature_map="squash")),
    "qpa_raw_centered": ("llama", _qpa(init_mode="raw", center_output=True, output_scale=0.5, vector_order="official")),
    "qpa_frozen": ("llama", _qpa(feature_source="qnn_frozen")),
    "qpa_free": ("llama", _qpa(feature_source="free")),
    "qpa_random": ("llama", _qpa(feature_source="random")),
    "qpa_none": ("llama", _qpa(feature_source="none")),
    "qpa_head_and_ranks": ("llama", _qpa(modules_to_save=["lm_head"], rank_pattern={"q_proj": 1}, use_rslora=True)),
    "qpa_gaussian": ("llama", _qpa(init_lora_weights="gaussian")),
    "quantum_peft": ("llama", _quantum_peft()),
    "quantum_peft_conv1d": ("gpt2", _quantum_peft(target_modules=["c_attn", "c_proj", "c_fc"])),
    "quantum_peft_paper_pauli": ("llama", _quantum_peft("paper_pauli")),
    "quantum_peft_paper_taylor": ("llama", _quantum_peft("paper_taylor")),
    "quantum_peft_qsd": ("llama", _quantum_peft(construction="qsd", target_modules=["down_proj"])),
    "quantum_peft_pad": ("llama", _quantum_peft(construction="pad", target_modules=["down_proj"])),
    "quantum_peft_lie_cayley": ("llama", _quantum_peft(family="lie", lie_rank=2, lie_map="cayley")),
    "quantum_peft_kronecker": ("llama", _quantum_peft(family="kronecker")),
    "quantum_peft_core": ("llama", _quantum_peft(family="core", frame="random", frame_rank=8)),
    "quantum_peft_signs": ("llama", _quantum_peft(entangler="signs")),
    "quantum_peft_no_entangler": ("llama", _quantum_peft(entangler="none")),
    "quantum_peft_shared": ("llama", _quantum_peft(share="type")),
    "quantum_peft_frozen": ("llama", _quantum_peft(freeze_angles=True)),
    "quantum_peft_random_frames": ("llama", _quantum_peft(frame="random", frame_rank=8)),
    "quantum_peft_frames": ("llama", _quantum_peft(frame="gradient", frame_rank=8)),
    FRAMES_NOT_STORED: ("llama", _quantum_peft(frame="gradient", frame_rank=8, store_frames=False)),
    "quantum_peft_fitted_start": ("llama", _quantum_peft(start="gradient")),
    "quantum_peft_gains": ("llama", _quantum_peft(modules_to_save=["input_layernorm"])),
    "quantum_peft_8_bits": ("llama", _quantum_peft(bits=8)),
    "quantum_peft_2_bits": ("llama", _quantum_peft(bits=2, group_size=8)),
    "qaa": ("llama", _tuner(qpeft.QAAConfig)),
    "qaa_conv1d": ("gpt2", _tuner(qpeft.QAAConfig)),
    "qaa_real": ("llama", _tuner(qpeft.QAAConfig, ansatz="qaa", n_layers=2, carry_norm=True)),
    "qaa_rxyz": ("llama", _tuner(qpeft.QAAConfig, ansatz="rxyz", share_circuit=True, use_offset=False)),
    "qaa_probs": ("llama", _tuner(qpeft.QAAConfig, readout="probs", allow_large=True)),
    "qaa_frozen": ("llama", _tuner(qpeft.QAAConfig, train_circuit=False)),
    "qaa_quadratic": ("llama", _tuner(qpeft.QAAConfig, feature_source="quadratic")),
    "qaa_linear": ("llama", _tuner(qpeft.QAAConfig, feature_source="linear")),
    "qaa_givens": ("llama", _tuner(qpeft.QAAConfig, feature_source="givens")),
    "qaa_none": ("llama", _tuner(qpeft.QAAConfig, feature_source="none")),
    "sora": ("llama", _tuner(qpeft.SoRAConfig, r=4, target_modules=[*ATTENTION, "down_proj"])),
    "sora_conv1d": ("gpt2", _tuner(qpeft.SoRAConfig, r=4, target_modules=["c_attn"], gate_init="ones")),
    "bottleneck": ("llama", _tuner(qpeft.BottleneckConfig, bottleneck_size=3)),
    "bottleneck_relu": ("gpt2", _tuner(qpeft.BottleneckConfig, bottleneck_size=3, activation="relu")),
    "attach_lora": ("llama", _attached("Lora", {"r": 2, "target_modules": ATTENTION})),
    "attach_pissa": ("llama", _attached("Lora", {"r": 2, "target_modules": ATTENTION, "init_lora_weights": "pissa"})),
    "attach_ia3": ("llama", _attached("IA3", chunk_size=4)),
    "attach_vera": ("llama", _attached("Vera", {"r": 4, "target_modules": ATTENTION}, chunk_size=4)),
    "attach_loha": ("llama", _attached("LoHa", {"r": 2, "target_modules": ATTENTION})),
    "attach_ln_tuning": ("llama", _attached("LNTuning", chunk_size=8)),
    "attach_prefix": ("llama", _attached("PrefixTuning", {"num_virtual_tokens": 3})),
    "attach_prompt": ("llama", _attached("PromptTuning", {"num_virtual_tokens": 3}, init_mode="raw")),
    "attach_bottleneck": ("llama", _attached("Bottleneck", {"bottleneck_size": 2})),
    "lora": ("llama", _tuner(LoraConfig, r=2, target_modules=ATTENTION)),
}


def move(model: Any) -> None:
    """As if the adapter had been trained: every trainable parameter moves, and one gate of each module closes."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.05)
            if "sora_gate" in name:
                parameter[1] = 0.0


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def make_adapters() -> None:
    found = {f"base/{make().name_or_path}": logits(make()) for make in BASES.values()} | {"input_ids": IDS}
    for name, (base, adapt) in ADAPTERS.items():
        torch.manual_seed(0)
        model = adapt(BASES[base]())
        move(model)
        model.eval()
        found[f"adapters/{name}"] = logits(model)
        qpeft.save(model, HERE / "adapters" / name)
        try:
            qpeft.export(model, HERE / "exported" / name)
        except qpeft.errors.QpeftError as error:
            sys.stderr.write(f"{name}: not exported: {error}\n")
    save_file(found, HERE / "logits.safetensors", {"torch": torch.__version__, "qpeft": qpeft.__version__})
    for card in HERE.glob("*/*/README.md"):  # one of each is enough
        if card.parent.name != "qpa":
            card.unlink()


STUDY = """
name: small
title: A small study
question: Are old results readable?
base: tiny-base
data: tale.txt
seeds: [0, 1]
reference: lora
tuning: {grid: [1.0, 3.0]}
training: {steps: 6, batch_size: 2, seq_len: 32, eval_every: 3, eval_blocks: 4}
test_blocks: 4
methods:
  - {key: none, method: none}
  - {key: lora, method: lora, settings: {r: 2}, lr: 0.003}
  - {key: qpa, method: qpa, settings: {r: 4, chunk_size: 16, hidden: [6, 5]}, lr: 0.001}
  - {key: control, method: qpa, settings: {r: 4, chunk_size: 16, hidden: [6, 5], feature_source: none}, lr: 0.001, role: control, against: qpa}
"""  # noqa: E501


def make_runs() -> None:
    """Relative names only, so that no folder of the machine is recorded."""
    from transformers import TrainerCallback

    from qpeft.training import TrainSettings, train

    class Interrupt(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

    Path("tale.txt").write_text(make_text(800), encoding="utf-8")
    make_base(Path("tiny-base"))
    small = {"r": 2, "chunk_size": 16, "hidden": [6, 5], "n_layers": 2}
    common: dict[str, Any] = {
        "model": "tiny-base", "data": "tale.txt", "steps": 8, "lr": 0.01, "batch_size": 2, "seq_len": 32,
        "eval_every": 4, "save_every": 2, "log_every": 1, "eval_blocks": 4, "method": "qpa", "method_settings": small,
    }  # fmt: skip
    train(TrainSettings(**common, out="run"))
    with suppress(KeyboardInterrupt):
        train(TrainSettings(**common, out="interrupted"), callbacks=[Interrupt()])


def make_base(folder: Path) -> None:
    """The seeded GPT-2 again, with a byte-level vocabulary."""
    from tiny_models import byte_tokenizer, filled
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    sizes = {"vocab_size": len(tokenizer), "n_positions": 64, "n_embd": 8, "n_layer": 2, "n_head": 2}
    model = filled(GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)), "tiny-base")
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0)
    model.save_pretrained(folder)


def make_study() -> None:
    import subprocess

    Path("study.yaml").write_text(STUDY, encoding="utf-8")
    command = [sys.executable, "-m", "qpeft", "compare", "run", "study.yaml", "--out", "study", "--workers", "1"]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for old in ("adapters", "exported", "run", "interrupted", "study"):
        shutil.rmtree(HERE / old, ignore_errors=True)
    os.chdir(HERE)
    make_adapters()
    make_runs()
    make_study()
    for unneeded in ("study/plots", "run/checkpoints", "interrupted/checkpoints/checkpoint-2"):
        shutil.rmtree(unneeded)
    Path("study/report.html").unlink()
