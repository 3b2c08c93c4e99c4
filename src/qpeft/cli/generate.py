"""`qpeft generate`: continue a prompt with a base model, or with an adapter on it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qpeft.cli.adapters import (
    AnsatzFile,
    FramesFile,
    MethodFile,
    OptionalAdapter,
    OptionalModel,
    TrustRemoteCode,
    adapter_config,
    base_of,
    find_optional,
    use_files,
)
from qpeft.cli.command import command
from qpeft.cli.console import Answer, say, working
from qpeft.cli.options import Fields
from qpeft.errors import ConfigError, InputError
from qpeft.training.decoding import Decoding
from qpeft.training.settings import HIGHEST_SEED

if TYPE_CHECKING:
    from rich.console import Console

_LOWEST, _HIGHEST = 1e-6, 1e6  # temperatures whose quotients with logits are finite


@command
def generate(
    model: OptionalModel = None,
    adapter: OptionalAdapter = None,
    method: MethodFile = None,
    ansatz: AnsatzFile = None,
    frames: FramesFile = None,
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
    *,
    search: Annotated[dict[str, Any], Fields(Decoding, panel="Options", leave_out=("max_new_tokens",))],
) -> Answer:
    """Continue a prompt with a base model, or with an adapter on it.

    Examples:

      qpeft generate --model gpt2 --prompt "Once upon a time"
      qpeft generate --adapter run --prompt "Once upon a time" --temperature 0.8
      qpeft generate --adapter run --prompt "Once upon a time" --num-beams 5
      echo "Once upon a time" | qpeft generate --adapter run
    """
    if temperature and not _LOWEST <= temperature <= _HIGHEST:
        raise ConfigError(f"--temperature must be 0, or from {_LOWEST:g} to {_HIGHEST:g}, got {temperature:g}")
    decoding = Decoding(max_new_tokens=max_new_tokens, **search)
    decoding.check()
    if temperature and decoding.num_beams > 1:
        raise ConfigError("--num-beams searches the most likely text, and --temperature samples; set one of them")
    use_files(method, ansatz)
    folder = find_optional(adapter, frames)
    if folder is not None:
        _refuse_classifier(folder)
    base_name = base_of(model, folder)
    text = _prompt(prompt)
    with working("Generating"):
        new, n_new = _generate(base_name, folder, text, decoding, temperature, seed, trust_remote_code)
    data = {"model": base_name, "adapter": folder, "prompt": text, "text": new, "n_new_tokens": n_new}
    data |= {"temperature": temperature, "seed": seed, "num_beams": decoding.num_beams}
    return Answer(data, lambda console: _print(text + new, console))


def _print(text: str, console: Console) -> None:
    """The text, unchanged in a file or a pipe; on a terminal its control characters are shown."""
    from qpeft.cli.safe_console import visible

    typer.echo(visible(text) if console.is_terminal else text, color=True)


def _refuse_classifier(folder: Path) -> None:
    from qpeft.training.tasks.record import read_record

    if read_record(folder) is not None or adapter_config(folder).get("task_type") == "SEQ_CLS":
        raise InputError(
            f"{folder} is an adapter for labelled data, which generates no text; score it with qpeft evaluate"
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
    base_name: str, folder: Path | None, prompt: str, decoding: Decoding, temperature: float, seed: int, trusted: bool
) -> tuple[str, int]:
    """The text that the model generates after `prompt`, and its number of tokens."""
    import torch

    import qpeft
    from qpeft.core.base_model import load_model, load_tokenizer
    from qpeft.training.generation import decode, has_room, new_text

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
    new = decode(model, ids, inputs["attention_mask"], decoding, **sampling)[0]
    return new_text(tokenizer, ids[0].tolist(), new), len(new)
