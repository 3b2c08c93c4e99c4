"""`qpeft generate`: continue a prompt with a base model, or with an adapter on it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qpeft.cli.adapters import (
    AnsatzFile,
    MethodFile,
    OptionalAdapter,
    OptionalModel,
    TrustRemoteCode,
    adapter_config,
    base_of,
    find_adapter,
    use_files,
)
from qpeft.cli.command import command
from qpeft.cli.console import Answer, say, working
from qpeft.errors import ConfigError, InputError
from qpeft.training.settings import HIGHEST_SEED

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

_LOWEST, _HIGHEST = 1e-6, 1e6  # temperatures whose quotients with logits are finite


@command
def generate(
    model: OptionalModel = None,
    adapter: OptionalAdapter = None,
    method: MethodFile = None,
    ansatz: AnsatzFile = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Text to continue. Default: read from standard input.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Generate at most this many tokens.")] = 100,
    temperature: Annotated[
        float,
        typer.Option(metavar="NUMBER", min=0.0, help="0 takes the most likely token; above 0, tokens are sampled."),
    ] = 0.0,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=HIGHEST_SEED, help="Seed of the sampling.")] = 0,
    trust_remote_code: TrustRemoteCode = False,
) -> Answer:
    """Continue a prompt with a base model, or with an adapter on it.

    Examples:

      qpeft generate --model gpt2 --prompt "Once upon a time"
      qpeft generate --adapter run --prompt "Once upon a time" --temperature 0.8
      echo "Once upon a time" | qpeft generate --adapter run
    """
    if temperature and not _LOWEST <= temperature <= _HIGHEST:
        raise ConfigError(f"--temperature must be 0, or from {_LOWEST:g} to {_HIGHEST:g}, got {temperature:g}")
    use_files(method, ansatz)
    folder = None if adapter is None else find_adapter(adapter)
    if folder is not None:
        _refuse_classifier(folder)
    base_name = base_of(model, folder)
    text = _prompt(prompt)
    with working("Generating"):
        new, n_new = _generate(base_name, folder, text, max_new_tokens, temperature, seed, trust_remote_code)
    data = {"model": base_name, "adapter": folder, "prompt": text, "text": new, "n_new_tokens": n_new}
    data |= {"temperature": temperature, "seed": seed}
    return Answer(data, lambda console: _print(text + new, console))


def _print(text: str, console: Console) -> None:
    """The text, unchanged in a file or a pipe; on a terminal its control characters are shown."""
    from qpeft.cli.safe_console import visible

    typer.echo(visible(text) if console.is_terminal else text, color=True)


def _refuse_classifier(folder: Path) -> None:
    from qpeft.training.tasks.record import read_record

    if read_record(folder) is not None or adapter_config(folder).get("task_type") == "SEQ_CLS":
        raise InputError(
            f"{folder} is the adapter of a classification, which generates no text; score it with qpeft evaluate"
        )


def _prompt(given: str | None) -> str:
    if given is None:
        if sys.stdin.isatty():
            say("Prompt:", "enter a text, then press Ctrl-D", style="bold")
        given = sys.stdin.read().rstrip("\n")
    if not given:
        raise InputError("the prompt is empty; pass --prompt or pipe a text into the command")
    return given


def _generate(
    base_name: str, folder: Path | None, prompt: str, max_new_tokens: int, temperature: float, seed: int, trusted: bool
) -> tuple[str, int]:
    """The text that the model generates after `prompt`, and its number of tokens."""
    import torch

    import qpeft
    from qpeft.training.base_model import load_model, load_tokenizer

    tokenizer = load_tokenizer(base_name, trusted)
    base = load_model(base_name, trust_remote_code=trusted).eval()
    inputs = tokenizer(prompt, return_tensors="pt")
    n_prompt = inputs["input_ids"].shape[1]
    context = getattr(base.config, "max_position_embeddings", None)
    if context is not None and n_prompt + max_new_tokens > context:
        raise InputError(
            f"{n_prompt} tokens of the prompt and {max_new_tokens} new ones exceed the model's context of {context}; "
            "shorten the prompt or lower --max-new-tokens"
        )
    model: Any = base if folder is None else qpeft.load(base, folder).eval()
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    pad = tokenizer.eos_token_id or 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    torch.manual_seed(seed)
    generated: Tensor = model.generate(**inputs, max_new_tokens=max_new_tokens, **sampling, pad_token_id=pad)
    new = generated[0, n_prompt:]
    return _continuation(tokenizer, inputs["input_ids"][0], new), len(new)


def _continuation(tokenizer: Any, prompt: Tensor, new: Tensor) -> str:
    """The new text alone, decoded together with the prompt: tokens may share a character or a space."""
    before, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, [*prompt, *new]))
    return whole[len(before) :]
