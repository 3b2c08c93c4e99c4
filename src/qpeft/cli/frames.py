"""`qpeft frames`: a file of gradient frames that many adapters of one base model share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qpeft import methods
from qpeft.cli.adapters import base_model
from qpeft.cli.command import command
from qpeft.cli.console import Answer, count, size, working
from qpeft.cli.method import AdapterOptions, GeneratorOptions, method_settings
from qpeft.cli.options import Fields
from qpeft.errors import ConfigError
from qpeft.training.settings import TrainSettings

if TYPE_CHECKING:
    from rich.console import Console

_FRAME = "gradient"
SETTINGS = (
    *("model", "data", "task", "seq_len", "separator", "batch_size", "dtype", "seed", "trust_remote_code"),
    *("text_column", "label_column", "prompt_column", "completion_column"),
)


@command
def frames(
    run: Annotated[dict[str, Any], Fields(TrainSettings, panel="Options", only=SETTINGS)],
    out: Annotated[Path, typer.Option(metavar="FILE", help="New file to write; .safetensors is added to the name.")],
    adapter: AdapterOptions,
    generator: GeneratorOptions,
) -> Answer:
    """Write a frame file: the gradient frames of a base model on a text, which many adapters share.

    An adapter trained with `qpeft train --frames FILE` stores its trained values and the hash of this file. The
    options are those of train. Give those that all adapters have, such as --share: an adapter stores only the options
    in which it differs.

    Examples:

      qpeft frames --model gpt2 --data domain.txt --out frames
      qpeft train --model gpt2 --data text.txt --method quantum_peft \\
          --frames frames.safetensors --out run
    """
    from qpeft.core.frame_file import new_path, read_frame_file
    from qpeft.training.prepare import prepare
    from qpeft.training.progress import Progress

    path = new_path(out)
    record = next(method for method in methods.records() if method.save_frames is not None)
    run = {**run, "model": base_model(run["model"]), "method": record.key}
    settings = TrainSettings(**run, out="")
    given = method_settings(settings, None, adapter, generator)
    if given.get("frames") is not None or given.get("frame", _FRAME) != _FRAME:
        raise ConfigError("a frame file holds new frames of the loss gradient; leave out --frames and --frame")
    settings.method_settings = {**given, "frame": _FRAME}
    settings.check()
    with working("Computing the gradient's directions"):
        model = prepare(settings, Progress()).model
        record.ask("save_frames", model, path)
    file = read_frame_file(path)
    written = {"path": str(path), "sha256": file.sha256, "bytes": path.stat().st_size, "modules": file.modules}
    return Answer(written, lambda console: _show(console, written))


def _show(console: Console, written: dict[str, Any]) -> None:
    modules = f"frames of {count(len(written['modules']))} modules, {size(written['bytes'])}"
    console.print(f"Written: {written['path']}, {modules}", soft_wrap=True)
    console.print(f"SHA-256: {written['sha256']}", soft_wrap=True)
