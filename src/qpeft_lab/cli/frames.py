"""`qpeft frames`: a file of gradient frames that many adapters of one base model share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from qpeft.errors import ConfigError
from qpeft.methods import records
from qpeft_lab.cli.command import command
from qpeft_lab.cli.console import Answer, TrainingBar, bars
from qpeft_lab.cli.method import MethodOptions, method_settings
from qpeft_lab.cli.options import Fields, needed
from qpeft_lab.cli.suggestion import OF_FRAMES
from qpeft_lab.demo import base_model
from qpeft_lab.files import output_file
from qpeft_lab.settings import RunSettings, settings_from


@command
def frames(
    *,
    run: Annotated[dict[str, Any], Fields(RunSettings, only=OF_FRAMES)],
    out: Path = needed("New file to write; .safetensors is added to the name.", metavar="FILE"),
    method: MethodOptions,
) -> Answer:
    """Write a frame file: the gradient frames of a base model on a text, which many adapters share.

    An adapter trained with `qpeft train --frames FILE` stores its trained values and the hash of
    this file. The options are those of train. Give those that all adapters have, such as --share:
    an adapter stores only the options in which it differs. Give the texts of all these adapters as
    --data, such as a folder of .txt files: in frames of other texts they learn less.

    Examples:

      qpeft frames --model gpt2 --data domain.txt --out frames
      qpeft train --model gpt2 --data text.txt --method quantum_peft \\
          --frames frames.safetensors --out run
    """
    from qpeft.core.frame_file import new_path, read_frame_file
    from qpeft.methods.method import imported
    from qpeft_lab.training.fit import prepare

    path = new_path(output_file(out))
    record = next(record for record in records() if record.save_fit is not None)
    fixed = {"model": base_model(run["model"]), "method": record.key, "out": "", "lr": 1.0}
    settings = settings_from(RunSettings, {**run, **fixed})
    given = method_settings(settings, {"frame": "gradient", **method})
    if given.get("frames") is not None or given["frame"] != "gradient":
        raise ConfigError(
            "a frame file holds new frames of the loss gradient; leave out --frames and --frame"
        )
    settings.method_settings = given
    settings.check()
    with bars() as shown:
        imported(record.save_fit)(prepare(settings, TrainingBar(shown, "frames")).model, path)
    file = read_frame_file(path)
    n_bytes = path.stat().st_size
    return Answer(
        {"path": path, "sha256": file.sha256, "bytes": n_bytes, "modules": len(file.shapes)}
    )
