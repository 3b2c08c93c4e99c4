r"""Norm gains as a LoRA: the test loss with low-rank updates of the maps that read a norm, in place of its gains.

    python benchmarks/gain_truncation.py --model M --grimm F --wikitext F --out benchmarks/results/gain_truncation.json

A gain that grows from g0 to g changes every map W (d_out, d_in) after an RMSNorm by W diag(g / g0 - 1). Its rank is in
general d_in, so a LoRA of rank r holds only the leading r singular vectors. For stories260K (d_in = 64) all norm gains
are trained with `small_budgets.py`'s data, training and learning rates; then they are replaced, without further
training, by a stock LoRA of rank 1, 4, 16 and 64, with and without the output head, which reads the last norm and
which TRL refuses. Five seeds; losses in nats per token on at most 200 blocks of the test split. Some minutes on one
core.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from peft import LNTuningConfig, LoraConfig, get_peft_model
from torch import Tensor, nn

import qpeft
from qpeft.core.base_model import load_model
from qpeft.files import write_json
from small_budgets import SEEDS, count, evaluate, load_blocks, train

LEARNING_RATES = {"grimm": 2e-2, "wikitext": 2e-1}  # chosen by small_budgets.py
STEPS = 300
RANKS = (1, 4, 16, 64)
EVAL_BLOCKS = 200
# norm -> the maps that read it
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
HEAD = "lm_head"
LORA = "LoRA"


def updates(base: nn.Module, trained: Any) -> dict[str, Tensor]:
    """The changes W diag(g / g0 - 1) of all maps that read a norm, (d_out, d_in), by the names of the maps."""
    weights = {name: parameter.detach() for name, parameter in base.named_parameters(remove_duplicate=False)}
    changed = dict(trained.named_parameters())
    found = {}
    for name in (name for name in weights if name.endswith("norm.weight")):
        parent, _, kind = name.removesuffix(".weight").rpartition(".")
        for reader in [f"{parent}.{reader}" for reader in READERS.get(kind, ())] or [HEAD]:
            found[reader] = weights[f"{reader}.weight"] * (changed[name].detach() / weights[name] - 1)
    return found


def low_rank(base: nn.Module, changes: dict[str, Tensor], rank: int) -> nn.Module:
    """A copy of the base with a LoRA whose updates are the best approximations of `changes` of this rank."""
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(changes), task_type="CAUSAL_LM")
    model: Any = get_peft_model(qpeft.untie_lm_head(copy.deepcopy(base)), config)
    for name, change in changes.items():
        layer = model.base_model.model.get_submodule(name)
        u, s, vh = torch.linalg.svd(change, full_matrices=False)
        kept = min(rank, len(s))
        b, a = layer.lora_B["default"].weight.data.zero_(), layer.lora_A["default"].weight.data.zero_()
        b[:, :kept], a[:kept] = u[:, :kept] * s[:kept], vh[:kept]
    return model


def measure(options: argparse.Namespace, text: str) -> list[dict[str, Any]]:
    base = load_model(options.model)
    file = getattr(options, text)
    blocks = load_blocks(argparse.Namespace(corpus=text, data=file, model=options.model, eval_blocks=EVAL_BLOCKS))
    losses: dict[tuple[str, int, bool], tuple[int, list[float]]] = {}

    def add(label: str, rank: int, with_head: bool, model: nn.Module, trainable: int) -> None:
        losses.setdefault((label, rank, with_head), (trainable, []))[1].append(evaluate(model, blocks.test))

    add("base model", 0, False, base, 0)
    for seed in SEEDS:
        torch.manual_seed(seed)
        norms = [name for name, _ in base.named_modules() if name.endswith("norm")]
        tuned: Any = get_peft_model(copy.deepcopy(base), LNTuningConfig(target_modules=norms, task_type="CAUSAL_LM"))
        train(tuned, blocks.train, LEARNING_RATES[text], seed, STEPS)
        add("norm gains", 0, False, tuned, count(tuned))
        changes = updates(base, tuned.merge_and_unload())
        for rank in RANKS:
            for with_head in (True, False):
                kept = {name: change for name, change in changes.items() if with_head or name != HEAD}
                model = low_rank(base, kept, rank)
                add(LORA, rank, with_head, model, count(model))
    return [
        {"text": text, "adapter": label, "rank": rank, "output_head": head, "parameters": n, "test": found}
        for (label, rank, head), (n, found) in losses.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: test losses on both texts, mean ± standard deviation."""
    texts = list(dict.fromkeys(row["text"] for row in rows))
    shown = [f"| adapter | parameters | {' | '.join(texts)} |", f"| --- | ---: |{' ---: |' * len(texts)}"]
    for first in (row for row in rows if row["text"] == texts[0]):
        same = [row for row in rows if all(row[key] == first[key] for key in ("adapter", "rank", "output_head"))]
        label = first["adapter"]
        if label == LORA:
            label += f" of rank {first['rank']}{', with the output head' if first['output_head'] else ''}"
        losses = [f"{mean(x):.4f}{f' ± {stdev(x):.4f}' if len(x) > 1 else ''}" for x in (row["test"] for row in same)]
        shown.append(f"| {label} | {first['parameters']:,} | {' | '.join(losses)} |")
    return "\n".join(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the folder of stories260K")
    parser.add_argument("--grimm", type=Path, required=True)
    parser.add_argument("--wikitext", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # PEFT on tied heads, the same for every row
    rows = [row for text in LEARNING_RATES for row in measure(options, text)]
    settings = {"steps": STEPS, "learning_rates": LEARNING_RATES, "d_in": 64}
    write_json(options.out, {**settings, "rows": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
