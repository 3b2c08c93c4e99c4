"""The embedded base's README.md, written from the figures in its training.json."""

_CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [gpt2, documentation, demo]
---
# qpeft's embedded base

A small causal language model in GPT-2's architecture, trained from scratch on the documentation of Python's
standard library. It exists so that `qpeft demo` and the tests have a real model to adapt without a download.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
import qpeft.demo

path = qpeft.demo.base_path()
model = AutoModelForCausalLM.from_pretrained(path, dtype="float32")  # stored as float16
tokenizer = AutoTokenizer.from_pretrained(path)
```

## What it is

{n_parameters:,} numbers (the head shares the embedding's): width {recipe[width]}, {recipe[layers]} layers,
{recipe[heads]} heads, context {recipe[context]}, byte-level BPE of {recipe[vocabulary]:,} tokens. Token 0,
`<|endoftext|>`, begins and ends a text; token 1, `<|pad|>`, pads. Dropout is 0 in the saved config, so that
fine-tuning compares adapters and not noise; in training it was {recipe[dropout]} (embeddings, residuals).

## How it was made

    python -m qpeft.demo.build_base --out DIR

Text: {corpus[documents]:,} distinct docstrings and `pydoc` topics, {corpus[bytes]:,} bytes, read from the
source files of Python {versions[python]}; SHA-256
`{corpus[sha256]}`.
A document's hash puts it into training (90 %), validation or test (5 % each). Tokenizer and model saw the
training part only.

Training: {recipe[passes]} passes, {steps:,} steps of {recipe[batch]} blocks of {recipe[context]} tokens,
{tokens:,} tokens in all; AdamW, highest learning rate {recipe[lr]}, warm-up then cosine, weight decay
{recipe[weight_decay]}, seed {recipe[seed]}; one CPU thread, {minutes:.0f} minutes; torch {versions[torch]},
transformers {versions[transformers]}, tokenizers {versions[tokenizers]}, numpy {versions[numpy]}. All
chance comes from the seed and the step's number, so that one machine with these versions repeats it, also
after interruptions.

## What it reaches

Measured when it was made, with the stored float16 weights and float32 arithmetic. Perplexity is weighted by
token, in blocks of {recipe[context]} tokens whose first is not scored. The last pass over the training text
had a mean loss of {train_loss:.3f} nats a token (with dropout).

| text | nats a token | perplexity | bits a byte | tokens |
|---|---|---|---|---|
{scores}

The NumPy row is a domain that it never saw: what the demo adapts it to. `training.json` has every figure and
the loss after each pass.

## Limits

It writes text that looks like Python documentation and is not true: never take it for information. It knows
no other language and no instructions, and sees {recipe[context]} tokens at most. The rows above rest on one
seed and one split. Similar functions are documented in similar words, so the standard library's held-out
figures are better than on wholly new text.

## Licence

The weights and the tokenizer are ours, Apache-2.0. The training text is part of Python, © Python Software
Foundation, under the PSF License; it is not in this folder, though the model can repeat phrases of it. NumPy's
documentation (BSD-3-Clause) was used for scoring only.
"""

_ROWS = {
    "stdlib_validation": "standard library, validation",
    "stdlib_test": "standard library, test",
    "numpy_test": "NumPy's documentation, test",
}


def model_card(training: dict) -> str:
    """The card's text for `training`, the content of training.json."""
    return _CARD.format(
        **{key: value for key, value in training.items() if key not in {"scores", "passes"}},
        minutes=training["seconds"] / 60,
        train_loss=training["passes"][-1]["train_loss"],
        scores="\n".join(_row(label, training["scores"][key]) for key, label in _ROWS.items()),
    )


def _row(label: str, s: dict) -> str:
    return f"| {label} | {s['loss']:.3f} | {s['perplexity']:.1f} | {s['bits_per_byte']:.3f} | {s['n_tokens']:,} |"
