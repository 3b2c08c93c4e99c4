"""A training step on any device, for the shape of any model, compared with stock LoRA.

    python benchmarks/training_step.py --methods quantum_peft --r 8
    python benchmarks/training_step.py --device cuda --geometry gpt2 smollm2 llama-1b \\
        --methods qpa quantum_peft framed --batch-size 4 --tokens 512 --steps 5 --rounds 9 --out steps.json

Random weights from a model's configuration; on the CPU one thread and processor time. A step is
forward, backward, AdamW and zero_grad. Each turn ends with a synchronization; in each round every
method has one timed turn. On CUDA every generated method is also measured with CUDA graphs
(`qpeft.capture`), under its name and `_captured`. Peak memory on the CPU is that of a child
process.
"""

from __future__ import annotations

import argparse
import copy
import gc
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig, OFTConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
)

import qpeft
from qpeft.files import write_json
from timing import Row, markdown, turns

GEOMETRIES = {
    "tiny": GPT2Config(
        n_layer=2, n_embd=64, n_head=2, vocab_size=1000, bos_token_id=0, eos_token_id=0
    ),
    "gpt2": GPT2Config(),
    "smollm2": LlamaConfig(  # as SmolLM2-135M
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    ),
    "llama-1b": LlamaConfig(  # as Llama 3.2 1B
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        tie_word_embeddings=True,
    ),
}

GENERATED = ["qpa", "quantum_peft", "framed"]
RANKED = {
    "lora": LoraConfig,
    "qpa": qpeft.QPAConfig,
    "quantum_peft": qpeft.QuantumPeftConfig,
    "framed": partial(
        qpeft.QuantumPeftConfig, frame="random", frame_rank=16
    ),  # frames of any kind cost the same
}
OTHERS = {
    "qaa": qpeft.QAAConfig,
    "cua": qpeft.CUAConfig,
    "oft": partial(
        OFTConfig, r=0, oft_block_size=4, use_cayley_neumann=False
    ),  # twin of CUA, not for Conv1D
    "quic": qpeft.QuICConfig,
    "quic_random": partial(qpeft.QuICConfig, multiplier="random"),
    "quanta": qpeft.QuanTAConfig,
    "mpo": partial(qpeft.QuanTAConfig, form="mpo"),
}
CAPTURED = {f"{name}_captured": name for name in GENERATED}  # as CUDA graphs
METHODS = [*RANKED, *OTHERS]
TWINS = {"cua": "oft", "quic": "quic_random", "quanta": "mpo"}


def shape_of(geometry: str) -> PretrainedConfig:
    """The config of a model."""
    if geometry == "embedded":
        from qpeft_lab.demo import base_path  # the other geometries need the library alone

        return AutoConfig.from_pretrained(base_path())
    return copy.deepcopy(GEOMETRIES[geometry])


def adapted(method: str, options: argparse.Namespace) -> Any:
    """The model with random weights, and with an adapter on all linear maps, in training mode."""
    torch.manual_seed(0)
    shape = shape_of(options.geometry)
    shape.num_hidden_layers = options.layers or shape.num_hidden_layers
    with torch.device(options.device):
        base = AutoModelForCausalLM.from_config(shape, dtype=getattr(torch, options.dtype))
    method = CAPTURED.get(method, method)
    own = RANKED.get(method)
    make = partial(own, r=options.r) if own else OTHERS[method]
    with warnings.catch_warnings(action="ignore"):  # PEFT on GPT-2's Conv1D, the same for all
        return get_peft_model(
            base, make(target_modules="all-linear", task_type="CAUSAL_LM")
        ).train()


def turn(method: str, options: argparse.Namespace) -> Callable[[], object]:
    """A function that trains a fresh model by `steps` steps."""
    model = adapted(method, options)
    if method in CAPTURED:
        for reason in filter(None, qpeft.capture(model).values()):
            raise SystemExit(f"{method}: the generator runs without CUDA graphs: {reason}")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    size = (options.batch_size, options.tokens)
    ids = torch.randint(model.config.vocab_size, size, device=options.device)

    def run() -> None:
        for _ in range(options.steps):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        wait(options.device)

    for _ in range(3):  # to warm up
        run()
    return run


def wait(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def peak_memory(method: str, options: argparse.Namespace) -> int:
    """Peak bytes of a few turns: resident bytes of a child process, or those of the accelerator's
    allocator.
    """
    if options.device != "cpu":
        gc.collect()
        before = torch.accelerator.memory_allocated()
        torch.accelerator.reset_peak_memory_stats()
        turn(method, options)
        return torch.accelerator.max_memory_allocated() - before
    known = ("device", "geometry", "dtype", "r", "batch_size", "tokens", "steps")
    flags = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in known]
    flags += [f"--layers={options.layers}"] if options.layers else []
    command = [sys.executable, __file__, *flags, f"--child={method}"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def step_rows(methods: list[str], options: argparse.Namespace, rounds: int) -> Iterator[Row]:
    """Processor seconds of steps, on an accelerator seconds; stock LoRA twice, as a control."""
    tasks = {name: turn(name, options) for name in ("lora", *methods)}
    tasks["second lora"] = turn("lora", options)
    seconds = turns(tasks, rounds, process_time if options.device == "cpu" else perf_counter)
    seconds = {name: [s / options.steps for s in samples] for name, samples in seconds.items()}
    size = f"{options.geometry}, all linear maps, {options.batch_size} x {options.tokens} tokens"
    for name in (*methods, "second lora"):
        yield Row.of_samples(f"{name}: {size}", "stock LoRA", seconds[name], seconds["lora"])
    for name, twin in (pair for pair in TWINS.items() if {*pair} <= {*methods}):
        yield Row.of_samples(f"{name}: {size}", f"its twin {twin}", seconds[name], seconds[twin])


def memory_rows(methods: list[str], options: argparse.Namespace) -> Iterator[Row]:
    """Peak bytes, each of a process of its own."""
    lora = peak_memory("lora", options)
    for name in methods:
        found = peak_memory(name, options)
        what = (
            f"memory of {name}: {options.geometry}, all linear maps, {options.batch_size} x"
            f" {options.tokens} tokens"
        )
        yield Row(what, "stock LoRA", "bytes", found, lora, lora / found, rounds=1)


def child(options: argparse.Namespace) -> None:
    turn(options.child, options)
    # not getrusage: on Linux a child inherits the peak of its parent
    status = Path("/proc/self/status").read_text().splitlines()
    print(1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM")))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["qpa"])
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--geometry", nargs="+", choices=[*GEOMETRIES, "embedded"], default=["gpt2"]
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="of the base model; default: bfloat16 for llama-1b, and float32 for the others",
    )
    parser.add_argument("--layers", type=int, help="of the model; default: all")
    parser.add_argument("--r", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument(
        "--steps", type=int, help="training steps in a turn; 1 on the CPU and 10 elsewhere"
    )
    parser.add_argument("--rounds", type=int, default=15, help="turns of each model")
    parser.add_argument("--out", type=Path, help="a JSON file for all rows and the machine")
    parser.add_argument("--child", metavar="METHOD", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.steps = options.steps or (1 if options.device == "cpu" else 10)
    torch.set_num_threads(1)
    if options.child:
        options.geometry = options.geometry[0]
        child(options)
        return
    methods = list(options.methods)
    machine = platform.processor() or platform.machine()
    if options.device.startswith("cuda"):
        methods += [captured for captured, name in CAPTURED.items() if name in methods]
        machine = torch.cuda.get_device_name()
    about = {
        "device": machine,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "options": {name: value for name, value in vars(options).items() if name != "out"},
    }
    print(machine)
    rows: list[Row] = []
    for geometry in options.geometry:
        dtype = options.dtype or ("bfloat16" if geometry == "llama-1b" else "float32")
        here = argparse.Namespace(**{**vars(options), "geometry": geometry, "dtype": dtype})
        measured = [*step_rows(methods, here, options.rounds), *memory_rows(methods, here)]
        print(f"{geometry}, {dtype}\n\n{markdown(measured)}", flush=True)
        rows += measured
        if options.out:  # after each geometry, in case that a later one does not fit
            write_json(options.out, {"rows": [asdict(row) for row in rows], **about})


if __name__ == "__main__":
    main()
