"""The options for an adapter and its base model, shared by several commands, and the folder and model they name."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qpeft import methods
from qpeft.demo import base_model
from qpeft.errors import CheckpointError, ConfigError, InputError
from qpeft.files import read_json
from qpeft.user_files import is_file, names_in

if TYPE_CHECKING:
    from qpeft.training.run_folder import RunFolder

CONFIG = "adapter_config.json"

ModelOption = Annotated[
    str, typer.Option(metavar="ID|PATH", help="Base model: a hub id, a folder, or embedded, the one inside qpeft.")
]
OptionalModel = Annotated[
    str | None,
    typer.Option(metavar="ID|PATH", help="Base model, as for train. Default: the one that the adapter names."),
]

OptionalAdapter = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH", help="Run folder, or adapter folder (compact or stock). Default: the base model alone."
    ),
]
MethodFile = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="FILE.py:NAME",
        help="For an adapter of your own method: the file that registers it. Loading an adapter never imports code.",
    ),
]
AnsatzFile = Annotated[
    str | None,
    typer.Option(
        "--ansatz",
        metavar="FILE.py:NAME",
        help="For an adapter with an ansatz of your own: the file that registers it.",
    ),
]

FramesFile = Annotated[
    Path | None,
    typer.Option(
        "--frames",
        metavar="FILE",
        help="Frame file of an adapter that refers to one. Default: the one that its run was given, or one in the "
        "adapter's folder or in two folders above.",
    ),
]

CircuitOption = Annotated[
    int,
    typer.Option(
        "--circuit",
        metavar="N",
        min=1,
        help="Which circuit of an adapter with several (n_generators), counted from 1. They differ in their angles.",
    ),
]

TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        metavar="",
        help="Execute Python code that the base model's folder or repository contains.",
    ),
]


def use_files(method: str | None, ansatz: str | None = None) -> None:
    """Register the method and the ansatz of FILE.py:NAME, so that their adapters can be loaded.

    Raises ConfigError for other names.
    """
    for option, name, example in (("method", method, "own_method.py:METHOD"), ("ansatz", ansatz, "own_ansatz.py:NAME")):
        if name is not None and not is_file(name):
            raise ConfigError(f"--{option} names a file here, such as {example}, got {name!r}; leave it out")
    if method is not None:
        methods.named(method)
    if ansatz is not None:
        from qpeft.circuits.ansatz import named_ansatz

        named_ansatz(ansatz)


def find_adapter(path: Path, frames: Path | None = None) -> Path:
    """`path` or its sub-folder `adapter`: the one with adapter_config.json.

    If the adapter refers to a frame file, `frames` or the one that its run was given is read, and found by its hash
    from then on.

    Raises:
        CheckpointError: neither has a config, `frames` is another file, or the adapter is of a method or ansatz that is
            not registered, and the run folder names its file.
        ConfigError: there is no file `frames`, or the adapter refers to none.
    """
    for folder in (path, path / "adapter"):
        if (folder / CONFIG).is_file():
            _read_frames(folder, frames)
            _name_files(folder)
            return folder
    raise CheckpointError(
        f"no adapter at {path}: expected a folder with {CONFIG}, or a run folder whose adapter/ has one"
    )


def find_optional(path: Path | None, frames: Path | None) -> Path | None:
    """As `find_adapter`; None without an adapter. Raises ConfigError for a frame file alone."""
    if path is None and frames is not None:
        raise ConfigError("--frames is for an adapter; add --adapter, or leave it out")
    return None if path is None else find_adapter(path, frames)


def _read_frames(folder: Path, given: Path | None) -> None:
    config = _content(folder)
    if given is None and config.get("frames_sha256") is None:
        return
    from qpeft.core.frame_file import check_given, read_frame_file

    if given is not None:
        check_given(given, config, folder)
    elif run := run_of(folder):
        with suppress(InputError):  # it is looked for next to the adapter then
            read_frame_file(str(run.settings().method_settings.get("frames", "")))


def _name_files(folder: Path) -> None:
    """Name the option for the user's file that the adapter needs. It is not executed: the folder may be of others."""
    run = run_of(folder)
    if run is None or folder.resolve() == run.exported:
        return
    names: dict[str, str] = {}
    with suppress(CheckpointError):  # a damaged record is not needed to load the adapter
        settings = run.settings()
        names = names_in(settings.method, settings.method_settings, {})
    if options := [f"--{part} {quote(name)}" for part, name in names.items() if _is_missing(part, name, folder)]:
        raise CheckpointError(
            f"the run {run.path} was made with code of a file, which is executed only if you name it; add "
            f"{' '.join(options)}"
        )


def _is_missing(part: str, name: str, folder: Path) -> bool:
    if part == "ansatz":
        from qpeft.circuits.ansatz import is_registered

        return not is_registered(name.rpartition(":")[2])
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return _content(folder)["peft_type"] not in PEFT_TYPE_TO_CONFIG_MAPPING


def run_of(folder: Path) -> RunFolder | None:
    """The run folder of an adapter folder, if it is in one."""
    from qpeft.training.run_folder import RunFolder

    run = RunFolder(folder.resolve().parent)
    return run if run.config.is_file() and folder.resolve() in (run.adapter, run.exported) else None


def _content(folder: Path) -> dict[str, Any]:
    try:
        config = read_json(folder / CONFIG)
        config["peft_type"] = str(config["peft_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG} is not the JSON of a PEFT config; restore the file") from error
    return config


def adapter_config(folder: Path) -> dict[str, Any]:
    """The content of adapter_config.json. Raises CheckpointError if it is not the JSON of a PEFT config."""
    config = _content(folder)
    if config.get("frames_sha256") is None:
        return config
    from qpeft.core.frame_file import complete

    return complete(config, folder)


def virtual_tokens(folder: Path) -> int:
    """Positions of the context that a prefix or a prompt occupies; 0 for other adapters."""
    config = adapter_config(folder)
    host = config.get("host")
    found = config.get("num_virtual_tokens") or (host.get("num_virtual_tokens") if isinstance(host, dict) else 0) or 0
    if not isinstance(found, int):
        raise CheckpointError(
            f"{folder / CONFIG}: num_virtual_tokens must be an integer, got {found!r}; restore the file"
        )
    return found


def base_of(model: str | None, folder: Path | None) -> str:
    """The base model: `model`, or the one in the config of the adapter. Raises InputError if there is none."""
    if model is None and folder is None:
        raise InputError("no model; pass --model, --adapter, or both")
    named = model or (folder and adapter_config(folder).get("base_model_name_or_path"))
    if not named:
        raise InputError(f"{folder}/{CONFIG} has no base model; pass --model")
    return base_model(str(named))
