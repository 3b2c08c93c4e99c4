"""The base model's training: seeded, repeatable, and resumable after a kill at any moment.

Everything random is a function of (seed, step) or (seed, pass), never of what ran before. A checkpoint
therefore needs only the weights, AdamW's moments and the number of steps done.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qpeft.demo import checkpoint

if TYPE_CHECKING:
    import torch
    from transformers import GPT2LMHeadModel


@dataclass(frozen=True)
class Recipe:
    """The base's shape and its training. The defaults made the embedded one.

    `lr` is reached after the share `warmup` of all steps and falls to `lr * final_lr` along a cosine.
    """

    width: int = 128
    layers: int = 5
    heads: int = 4
    context: int = 256
    vocabulary: int = 4096
    dropout: float = 0.1
    passes: int = 20
    batch: int = 8
    lr: float = 2e-3
    warmup: float = 0.05
    final_lr: float = 0.05
    weight_decay: float = 0.1
    seed: int = 0
    save_every: int = 200


@dataclass(frozen=True)
class Progress:
    """What training says after each step: steps done of `steps`, the step's loss in nats a token."""

    step: int
    steps: int
    steps_a_pass: int
    loss: float


def new_model(recipe: Recipe) -> "GPT2LMHeadModel":
    """A GPT-2 with seeded first weights, tied head, float32. Token 0 begins and ends a text, 1 pads."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=recipe.vocabulary,
        n_positions=recipe.context,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        resid_pdrop=recipe.dropout,
        embd_pdrop=recipe.dropout,
        attn_pdrop=0.0,  # with dropout, CPUs lose the fused attention
        activation_function="gelu_pytorch_tanh",  # GPT-2's own, in one kernel
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        tie_word_embeddings=True,
    )
    torch.manual_seed(recipe.seed)
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # transformers cannot tell it from the class's name, and warns
    return model


def pretrain(
    recipe: Recipe,
    documents: Sequence[Sequence[int]],
    saved: Path,
    corpus: str,
    on_step: Callable[[Progress, "GPT2LMHeadModel"], None],
) -> "GPT2LMHeadModel":
    """Train on tokenised `documents`; go on from the checkpoint `saved` if it is there.

    `corpus` is the documents' digest: a checkpoint of another corpus or recipe raises CheckpointError.
    Returns the model in evaluation mode, float32.
    """
    import torch

    identity = json.dumps({"corpus": corpus, **asdict(recipe)})
    model = new_model(recipe)
    optimizer = _optimizer(model, recipe)
    data = _Packed(documents, recipe)
    steps = recipe.passes * data.steps_a_pass
    done = checkpoint.restore(saved, model, optimizer, identity) if saved.exists() else 0
    for step in range(done, steps):
        torch.manual_seed((recipe.seed << 32) + step)  # dropout
        loss = _train_step(model, optimizer, data.batch(step), _lr(recipe, step, steps))
        on_step(Progress(step + 1, steps, data.steps_a_pass, loss), model)  # first, or a kill loses its note
        if (step + 1) % recipe.save_every == 0 or step + 1 == steps:
            checkpoint.store(saved, model, optimizer, identity, step + 1)
    return model.eval()


class _Packed:
    """Documents in a new order each pass, chained, cut into blocks: batch `step` is a pure function."""

    def __init__(self, documents: Sequence[Sequence[int]], recipe: Recipe):
        self._documents = [np.array([*ids, 0]) for ids in documents]  # 0 ends a text
        self._recipe = recipe
        self.steps_a_pass = sum(map(len, self._documents)) // (recipe.batch * recipe.context)
        self._pass, self._blocks = -1, np.empty(0, dtype=np.int64)

    def batch(self, step: int) -> "torch.Tensor":  # (batch, context) int64
        import torch

        number, index = divmod(step, self.steps_a_pass)
        if number != self._pass:
            self._pass, self._blocks = number, self._pack(number)
        return torch.from_numpy(self._blocks[index])

    def _pack(self, number: int) -> np.ndarray:  # (steps_a_pass, batch, context)
        draw = np.random.Generator(np.random.Philox(key=[self._recipe.seed, number]))
        chain = np.concatenate([self._documents[i] for i in draw.permutation(len(self._documents))])
        shape = (self.steps_a_pass, self._recipe.batch, self._recipe.context)
        return chain[: math.prod(shape)].reshape(shape)


def _optimizer(model: "GPT2LMHeadModel", recipe: Recipe) -> "torch.optim.AdamW":
    import torch

    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))


def _lr(recipe: Recipe, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine from lr to final_lr * lr."""
    warmup = max(1, round(recipe.warmup * steps))
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    return recipe.lr * (recipe.final_lr + (1 - recipe.final_lr) * cosine)


def _train_step(model: "GPT2LMHeadModel", optimizer: "torch.optim.AdamW", blocks: "torch.Tensor", lr: float) -> float:
    import torch

    model.train()
    loss = model(input_ids=blocks, labels=blocks).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()
