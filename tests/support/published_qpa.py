"""The perplexity of the QPA paper as its published code computes it, written again from its description."""

import math

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def published_perplexity(folder, rows, length) -> float:
    """Every row padded to `length` with the end of a text, which is scored; the mean over batches of one row."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    options = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
    losses = []
    with torch.no_grad():
        for row in rows:
            batch = tokenizer([row], **options)
            ids, mask = batch["input_ids"].long(), batch["attention_mask"].long()
            losses.append(model(input_ids=ids, attention_mask=mask, labels=ids.clone()).loss.item())
    return math.exp(sum(losses) / len(losses))
