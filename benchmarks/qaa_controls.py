"""QAA beside its classical controls on a language model: the same maps, steps, data and seeds.

    python benchmarks/qaa_controls.py --model FOLDER --text FILE      # some 15 minutes on one core with stories260K

Each row trains the query and value projections for 100 steps of 8 x 64 tokens at three learning rates with one seed;
the best by validation loss gets two more seeds; the test loss is read once for each, at the end. Of every 20 blocks of
the text one is validation and one is test. LoRA's rank is the highest with no more numbers than QAA's `square`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import qpeft

STEPS, BATCH, TOKENS, RATES, SEEDS = 100, 8, 64, (3e-3, 1e-2, 3e-2), (0, 1, 2)
RESULTS = Path(__file__).parent / "results" / "qaa_controls.json"
ROWS = {
    "c only": {"feature_source": "none"},
    "square": {},
    "square, carry_norm": {"carry_norm": True},
    "square, frozen angles": {"train_circuit": False},
    "qaa": {"ansatz": "qaa"},
    "rxyz": {"ansatz": "rxyz"},
    "Givens + squares": {"feature_source": "givens"},
    "random quadratic": {"feature_source": "quadratic"},
    "random linear": {"feature_source": "linear"},
    "random linear, carry_norm": {"feature_source": "linear", "carry_norm": True},
}


def blocks(model: str, text: Path) -> dict[str, Tensor]:
    ids = AutoTokenizer.from_pretrained(model)(text.read_text(encoding="utf-8"), return_tensors="pt")["input_ids"][0]
    every = ids[: len(ids) // TOKENS * TOKENS].view(-1, TOKENS)
    turn = torch.arange(len(every)) % 20
    held = {"validation": every[turn == 9][:64], "test": every[turn == 19][:96]}
    return {"train": every[(turn != 9) & (turn != 19)], **held}


def adapted(name: str, model: str, seed: int, rank: int):
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if name.startswith("LoRA"):
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        return get_peft_model(base, config)
    config = qpeft.QAAConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", seed=seed, **ROWS[name])
    return get_peft_model(base, config)


@torch.no_grad()
def loss(model, data: Tensor) -> float:
    model.eval()
    return statistics.mean(model(input_ids=part, labels=part).loss.item() for part in data.split(16))


def run(name: str, model: str, data: dict[str, Tensor], rate: float, seed: int, rank: int) -> dict[str, float]:
    adapter = adapted(name, model, seed, rank).train()
    optimiser = torch.optim.AdamW([p for p in adapter.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1, (step + 1) / 6) * (1 - step / STEPS))
    order = torch.randperm(len(data["train"]), generator=torch.Generator().manual_seed(seed))
    for step in range(STEPS):
        batch = data["train"][order[step * BATCH % (len(order) - BATCH) :][:BATCH]]
        optimiser.zero_grad()
        adapter(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return {"rate": rate, "seed": seed, **{split: loss(adapter, data[split]) for split in ("validation", "test")}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, counts = blocks(options.model, options.text), {}
    for name in ROWS:
        counts[name] = adapted(name, options.model, 0, 1).get_nb_trainable_parameters()[0]
    one = adapted("LoRA", options.model, 0, 1).get_nb_trainable_parameters()[0]
    rank = counts["square"] // one
    names = [*ROWS, f"LoRA r = {rank}"]
    counts[names[-1]] = rank * one
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    print(f"base {loss(base, data['test']):.4f}\n| adapter | trained | rate | test loss |")
    found = {}
    for name in names:
        tried = [run(name, options.model, data, rate, SEEDS[0], rank) for rate in RATES]
        best = min(tried, key=lambda one: one["validation"])
        kept = [best, *(run(name, options.model, data, best["rate"], seed, rank) for seed in SEEDS[1:])]
        tests = [one["test"] for one in kept]
        found[name] = {"trained": counts[name], "tried": tried, "kept": kept}
        edge = {RATES[0]: " ↓", RATES[-1]: " ↑"}.get(best["rate"], "")
        mean, spread = statistics.mean(tests), statistics.stdev(tests)
        print(f"| {name}{edge} | {counts[name]:,} | {best['rate']} | {mean:.4f} ± {spread:.4f} |", flush=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
