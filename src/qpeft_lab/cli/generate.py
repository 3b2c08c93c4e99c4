"""`qpeft generate`: continue a prompt with a base model, or with an adapter on it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from qpeft.checks import option
from qpeft.errors import ConfigError, InputError
from qpeft_lab.cli.adapters import OptionalAdapter, adapter_config
from qpeft_lab.cli.command import command
from qpeft_lab.cli.console import Answer, say, working
from qpeft_lab.settings import HIGHEST_SEED
from qpeft_lab.training.generate import Decoding


@command
def generate(
    *,
    source: OptionalAdapter,
    prompt: str | None = option(None, "Text to continue. Default: read from standard input."),
    temperature: float = option(
        0.0, "0 takes the most likely token; above 0, tokens are sampled.", at_least=0, at_most=100
    ),
    seed: int = option(0, "Seed of the sampling.", at_least=0, at_most=HIGHEST_SEED),
    decoding: Decoding,
) -> Answer:
    """Continue a prompt with a base model, or with an adapter on it.

    Examples:

      qpeft generate --model gpt2 --prompt "Once upon a time"
      qpeft generate --adapter run --prompt "Once upon a time" --temperature 0.8
      qpeft generate --adapter run --prompt "Once upon a time" --num-beams 5
      echo "Once upon a time" | qpeft generate --adapter run
    """
    decoding.check()
    if temperature and decoding.num_beams > 1:
        raise ConfigError("--num-beams searches the most likely text, and --temperature samples; set one of them")
    folder = source.folder()
    if folder is not None:
        _refuse_classifier(folder)
    base_name, prompt = source.base(folder), _prompt(prompt)
    with working("Generating"):
        new, n_new = _generate(base_name, folder, prompt, decoding, temperature, seed, source.trust_remote_code)
    data = {"model": base_name, "adapter": folder, "prompt": prompt, "text": new, "n_new_tokens": n_new}
    data |= {"temperature": temperature, "seed": seed, "num_beams": decoding.num_beams}
    return Answer(data, lambda _: typer.echo(prompt + new, color=True))


def _refuse_classifier(folder: Path) -> None:
    from qpeft_lab.training.classifier import read_record

    if read_record(folder) is not None or adapter_config(folder).get("task_type") == "SEQ_CLS":
        raise InputError(
            f"{folder} is an adapter for labelled data, which generates no text; score it with qpeft evaluate"
        )


def _prompt(given: str | None) -> str:
    if given is None:
        if sys.stdin.isatty():
            say("Prompt:", "enter a text, then press Ctrl-D")
        given = sys.stdin.read().rstrip("\n")
    if not given:
        raise InputError("the prompt is empty; pass --prompt or pipe a text into the command")
    return given


def _generate(
    base_name: str, folder: Path | None, prompt: str, decoding: Decoding, temperature: float, seed: int, trusted: bool
) -> tuple[str, int]:
    """The text that the model generates after `prompt`, and its number of tokens."""
    import torch

    import qpeft
    from qpeft_lab.base_model import load_model, load_tokenizer
    from qpeft_lab.training.generate import generate as continue_prompt
    from qpeft_lab.training.generate import has_room, new_text

    tokenizer = load_tokenizer(base_name, trusted)
    base = load_model(base_name, trust_remote_code=trusted)
    inputs = tokenizer(prompt, return_tensors="pt")
    ids, n_new = inputs["input_ids"], decoding.max_new_tokens
    model: Any = base if folder is None else qpeft.load(base, folder)
    if not has_room(model, ids.shape[1] + n_new):
        raise InputError(
            f"{ids.shape[1]} tokens of the prompt and {n_new} new ones exceed the model's context of "
            f"{base.config.max_position_embeddings}; shorten the prompt or lower --max-new-tokens"
        )
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {}
    torch.manual_seed(seed)
    new = continue_prompt(model, ids, inputs["attention_mask"], decoding, **sampling)[0]
    return new_text(tokenizer, ids[0].tolist(), new), len(new)
