"""What is written when training is done: the compact adapter, the stock one, the card."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qpeft
from qpeft.adapters.holder import holder_of
from qpeft.adapters.model_card import load_lines
from qpeft.files import replace_folder, write_text
from qpeft.training.result import TrainResult
from qpeft.training.run_folder import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def write_adapter(model: Any, folder: RunFolder, method: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Write adapter/ and exported/, each whole or not at all; returns the numbers needed at inference.

    Method full has no adapter: exported/ is the model, with its tokenizer.
    """
    if method == "full":
        with replace_folder(folder.exported) as target:
            model.save_pretrained(str(target))
            tokenizer.save_pretrained(str(target))
        return count_trainable(model)
    qpeft.save(model, folder.adapter)
    if is_generated(model):
        report = qpeft.export(model, folder.exported)
        return report.n_generated + count_trainable(model) - report.n_trained  # modules_to_save are beside it
    qpeft.save(model, folder.exported)
    return count_trainable(model)


def is_generated(model: Any) -> bool:
    """Whether qpeft generates the adapter's numbers, so that the compact folder needs qpeft."""
    return holder_of(model) is not None


def resumable(model: Any) -> AbstractContextManager[None]:
    """Within: what the Trainer saves is enough to go on to the bit, also where an adapter's numbers are quantised."""
    holder = holder_of(model)
    return nullcontext() if holder is None else holder.keeping_latent()


def count_trainable(model: Any) -> int:
    """Numbers that training changes, shared ones once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def weight_bytes(folder: Path) -> int:
    """Size of a folder's weights files; 0 without them."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def write_card(folder: RunFolder, result: TrainResult, *, needs_qpeft: bool) -> None:
    """The run's README.md; `needs_qpeft`: to load adapter/."""
    write_text(folder.card, _card(result, needs_qpeft))


def _card(result: TrainResult, needs_qpeft: bool) -> str:
    before, after = result.before, result.after
    return f"""---
base_model: {result.model}
library_name: peft
tags:
- qpeft
- {result.method}
---

# {result.model} fine-tuned with {result.method}

| | before | after |
| --- | ---: | ---: |
| perplexity | {before.perplexity:.4f} | {after.perplexity:.4f} |
| loss, nats a token | {before.loss:.6f} | {after.loss:.6f} |
| bits a byte | {before.bits_per_byte:.6f} | {after.bits_per_byte:.6f} |

Scored on {after.n_tokens:,} tokens of validation data after {result.steps:,} steps. Trained numbers:
{result.trainable:,}; numbers needed at inference beside the base: {result.deployed:,}.

{_folders(result, needs_qpeft)}
Settings, hashes and versions: `config.json`. Losses and scores: `metrics.jsonl`.
"""


def _folders(result: TrainResult, needs_qpeft: bool) -> str:
    if result.method == "full":
        return "`exported/` is the whole model, with its tokenizer; it loads with transformers alone.\n"
    lines = load_lines(result.model, "exported", needs_qpeft=False)
    adapter = "the same adapter"
    if needs_qpeft:
        adapter = f"the generator alone ({result.stored_bytes:,} bytes); **loading it needs qpeft**"
    return f"""- `exported/`: a stock adapter ({result.exported_bytes:,} bytes); it loads with PEFT alone
- `adapter/`: {adapter}

```python
{lines}
```
"""
