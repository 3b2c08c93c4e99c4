"""`qpeft generate`: continue a prompt with a base model, or with an adapter on it."""

from __future__ import annotations

import sys
from typing import Any

import typer

from qpeft.checks import option
from qpeft.errors import InputError
from qpeft_lab.cli.adapters import OptionalAdapter, adapter_config
from qpeft_lab.cli.command import command
from qpeft_lab.cli.console import Answer, stderr
from qpeft_lab.settings import HIGHEST_SEED
from qpeft_lab.training.generate import Decoding


@command
def generate(
    *,
    source: OptionalAdapter,
    prompt: str | None = option(None, "Text to continue. Default: read from standard input."),
    temperature: float = option(
        0.0,
        "0 takes the most likely token; above 0, tokens are sampled, with several beams for each of"
        " them.",
        at_least=0,
        at_most=100,
    ),
    seed: int = option(0, "Seed of the sampling.", at_least=0, at_most=HIGHEST_SEED),
    decoding: Decoding,
) -> Answer:
    """Continue a prompt with a base model, or with an adapter on it.

    Examples:

      qpeft generate --model gpt2 --prompt "Once upon a time"
      qpeft generate --adapter run --prompt "Once upon a time" --temperature 0.8
      echo "Once upon a time" | qpeft generate --adapter run
    """
    decoding.check()
    if seed and not temperature:
        raise InputError(
            "--seed is for sampling; add --temperature above 0, or leave it out: the most likely"
            " token does not depend on it"
        )
    folder = source.find_given()
    base_name = source.base(folder)
    text = _prompt(prompt)
    with stderr().status("Generating"):
        import torch

        import qpeft
        from qpeft_lab.base_model import load_model, load_tokenizer
        from qpeft_lab.training.classifier import read_record
        from qpeft_lab.training.generate import generate_texts

        config = {} if folder is None else adapter_config(folder, source.frames)
        if folder and (read_record(folder) or config.get("task_type") == "SEQ_CLS"):
            raise InputError(
                f"{folder} is an adapter for labelled data, which generates no text; use qpeft"
                " evaluate"
            )
        tokenizer = load_tokenizer(base_name, source.trust_remote_code)
        model: Any = load_model(base_name, trust_remote_code=source.trust_remote_code)
        if folder is not None:
            model = qpeft.load(model, folder, frames=source.frames)
        torch.manual_seed(seed)
        (new,) = generate_texts(model, tokenizer, [text], decoding, temperature=temperature)
    data = {
        "model": base_name,
        "adapter": folder,
        "prompt": text,
        "text": new,
        "temperature": temperature,
    }
    data |= {"seed": seed, "num_beams": decoding.num_beams}
    return Answer(data, lambda _: typer.echo(text + new, color=True))


def _prompt(given: str | None) -> str:
    if given is None:
        given = sys.stdin.read().rstrip("\n")
    if not given:
        raise InputError("the prompt is empty; pass --prompt or pipe a text into the command")
    return given
