"""`qpeft generate`: continue a prompt with a base model, or with an adapter on it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from qpeft.checks import option
from qpeft.errors import InputError
from qpeft_lab.base_files import lacks_chat_template
from qpeft_lab.cli.adapters import OptionalAdapter, adapter_config, run_of, template_of
from qpeft_lab.cli.command import command
from qpeft_lab.cli.console import Answer, say, stderr
from qpeft_lab.data.sources import begins_with_messages
from qpeft_lab.settings import HIGHEST_SEED
from qpeft_lab.training.generate import Decoding

_NO_TEMPLATE = (
    "{} has no chat template, so it takes no messages; leave out --chat, or give a chat model"
)


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
    chat: bool = option(
        False,
        "The prompt is the message of a user, in the chat template of the base, or of the run.",
    ),
    system: str | None = option(None, "Message of the system before the prompt; with --chat."),
    decoding: Decoding,
) -> Answer:
    """Continue a prompt with a base model, or with an adapter on it; or answer it, with --chat.

    Examples:

      qpeft generate --model gpt2 --prompt "Once upon a time"
      qpeft generate --adapter run --prompt "Once upon a time" --temperature 0.8
      echo "Once upon a time" | qpeft generate --adapter run
      qpeft generate --model smollm2 --prompt "Name three colours." --chat
    """
    decoding.check()
    if seed and not temperature:
        raise InputError(
            "--seed is for sampling; add --temperature above 0, or leave it out: the most likely"
            " token does not depend on it"
        )
    if system is not None and not chat:
        raise InputError("--system is a message of a conversation; add --chat, or leave it out")
    folder = source.find_given()
    base_name = source.base(folder)
    text = _prompt(prompt)
    template = _template(folder, base_name, chat)
    with stderr().status("Generating"):
        import torch

        import qpeft
        from qpeft_lab.base_model import (
            check_is_causal,
            load_config,
            load_model,
            load_tokenizer,
            warn_of_own_tokenizer,
        )
        from qpeft_lab.data.text import as_chat, read_template
        from qpeft_lab.training.classifier import read_record
        from qpeft_lab.training.generate import generate_texts

        config = {} if folder is None else adapter_config(folder, source.frames)
        if folder and (read_record(folder) or config.get("task_type") == "SEQ_CLS"):
            raise InputError(
                f"{folder} is an adapter for labelled data, which generates no text; use qpeft"
                " evaluate"
            )
        check_is_causal(load_config(base_name, source.trust_remote_code), base_name)
        tokenizer = load_tokenizer(base_name, source.trust_remote_code)
        warn_of_own_tokenizer(folder, tokenizer)
        if template is not None:
            tokenizer.chat_template = read_template(template)
        if chat and tokenizer.chat_template is None:  # of a base on the hub
            raise InputError(_NO_TEMPLATE.format(base_name))
        continued = as_chat(text, tokenizer, system) if chat else text
        model: Any = load_model(base_name, trust_remote_code=source.trust_remote_code)
        if folder is not None:
            model = qpeft.load(model, folder, frames=source.frames)
        torch.manual_seed(seed)
        (new,) = generate_texts(
            model, tokenizer, [continued], decoding, temperature=temperature, have_template=chat
        )
    data = {
        "model": base_name,
        "adapter": folder,
        "prompt": text,
        "chat": chat,
        "text": new,
        "temperature": temperature,
    }
    data |= {"seed": seed, "num_beams": decoding.num_beams}
    return Answer(data, lambda _: typer.echo(new if chat else text + new, color=True))


def _template(folder: Path | None, base_name: str, chat: bool) -> str | None:
    """The chat template that the run of the adapter in `folder` was given, or the one next to the
    adapter, if `chat` uses one.

    Says so if the run had conversations and `chat` is not used. Raises InputError if there is no
    template.
    """
    run = None if folder is None else run_of(folder, with_checkpoints=True)
    settings = None if run is None else run.recorded()[0]
    template = None if folder is None else template_of(folder, run)
    had_messages = template or (settings is not None and begins_with_messages(settings.data))
    if had_messages and not chat:
        say("Note:", "the adapter was trained on conversations; add --chat to ask it as a user")
    if not chat:
        return None
    if template is None and lacks_chat_template(base_name):
        raise InputError(_NO_TEMPLATE.format(base_name))
    return template


def _prompt(given: str | None) -> str:
    if given is None:
        given = "" if sys.stdin is None else sys.stdin.read().removesuffix("\n")
    if not given:
        raise InputError("the prompt is empty; pass --prompt or pipe a text into the command")
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise InputError("the prompt is no text in UTF-8; convert it") from error
    return given
