"""The options that name an adapter and its base model, shared by several commands, and the folder that they mean."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from qpeft import methods
from qpeft.checks import option
from qpeft.errors import CheckpointError, ConfigError, InputError
from qpeft.files import read_json
from qpeft.user_code import is_file
from qpeft_lab.demo import base_model
from qpeft_lab.user_files import FRAMES, named_ansatz, names_in

if TYPE_CHECKING:
    from qpeft_lab.training.run_folder import RunFolder

CONFIG = "adapter_config.json"

METHOD = option(
    None,
    "For an adapter of your own method: the file that registers it. Loading an adapter never imports code.",
    metavar="FILE.py:NAME",
)
ANSATZ = option(None, "For an adapter with an ansatz of your own: the file that registers it.", metavar="FILE.py:NAME")
TRUST = option(False, "Execute Python code that the base model's folder or repository contains.")


@dataclass(kw_only=True)
class Loading:
    """What an adapter needs to be loaded."""

    model: str | None = option(
        None, "Base model, as for train. Default: the one that the adapter names.", metavar="ID|PATH"
    )
    method: str | None = METHOD
    ansatz: str | None = ANSATZ
    frames: Path | None = option(
        None,
        "Frame file of an adapter that refers to one. Default: the one that its run was given, or one in the adapter's "
        "folder or in two folders above.",
        metavar="FILE",
    )
    trust_remote_code: bool = TRUST

    def find(self, path: Path) -> Path:
        """The adapter folder at `path`, after the execution of the files that its adapter needs."""
        use_files(self.method, self.ansatz)
        return find_adapter(path, self.frames)

    def base(self, folder: Path | None) -> str:
        """The base model: `model`, or the one in the config of the adapter. Raises InputError if there is none."""
        if self.model is None and folder is None:
            raise InputError("no model; pass --model, --adapter, or both")
        named = self.model or (folder and adapter_config(folder).get("base_model_name_or_path"))
        if not named:
            raise InputError(f"{folder}/{CONFIG} has no base model; pass --model")
        return base_model(str(named))


@dataclass(kw_only=True)
class OptionalAdapter(Loading):
    """A base model, with an adapter on it or alone."""

    adapter: Path | None = option(
        None, "Run folder, or adapter folder (compact or stock). Default: the base model alone."
    )

    def folder(self) -> Path | None:
        """The adapter folder, if an adapter is given. Raises ConfigError for a frame file alone."""
        if self.adapter is None and self.frames is not None:
            raise ConfigError("--frames is for an adapter; add --adapter, or leave it out")
        return None if self.adapter is None else self.find(self.adapter)


def use_files(method: str | None, ansatz: str | None = None) -> None:
    """Register the method and the ansatz of FILE.py:NAME, so that their adapters can be loaded.

    Raises ConfigError for other names.
    """
    for name, value, use in (("method", method, methods.named), ("ansatz", ansatz, named_ansatz)):
        if value is not None and not is_file(value):
            raise ConfigError(f"--{name} names a file here, such as own_{name}.py:NAME, got {value!r}; leave it out")
        if value is not None:
            use(value)


def find_adapter(path: Path, frames: Path | None = None) -> Path:
    """`path` or its sub-folder `adapter`: the one with adapter_config.json.

    If the adapter refers to a frame file, `frames` or the one that its run was given is read, and found by its hash
    from then on.

    Raises:
        CheckpointError: neither has a config, `frames` is another file, or the adapter is of a method or ansatz that is
            not registered, and the run folder names its file.
        ConfigError: there is no file `frames`, or the adapter refers to none.
    """
    folder = next((place for place in (path, path / "adapter") if (place / CONFIG).is_file()), None)
    if folder is None:
        raise CheckpointError(
            f"no adapter at {path}: expected a folder with {CONFIG}, or a run folder whose adapter/ has one"
        )
    config, run = _content(folder), run_of(folder)
    with suppress(CheckpointError):  # a damaged record is not needed to load the adapter
        settings = None if run is None or folder.resolve() == run.exported else run.settings()
        if settings is not None:
            _refuse_unregistered(config, names_in(settings.method, settings.method_settings, {}), path)
    if frames is not None or config.get("frames_sha256") is not None:
        from qpeft.core.frame_file import read_frame_file, with_frame_settings

        if frames is not None:
            with_frame_settings(config, folder, frames)
        elif run is not None:
            with suppress(InputError):  # it is looked for next to the adapter then
                read_frame_file(str(run.settings().method_settings.get(FRAMES, "")))
    return folder


def _refuse_unregistered(config: dict[str, Any], names: dict[str, str], path: Path) -> None:
    """Name the options for the files that the adapter needs. They are not executed: the folder may be of others."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from qpeft.circuits.ansatz import ansatz_names

    known = {
        "ansatz": config.get("ansatz") in ansatz_names(),
        "method": config["peft_type"] in PEFT_TYPE_TO_CONFIG_MAPPING,
    }
    if options := [f"--{part} {quote(name)}" for part, name in names.items() if not known.get(part, True)]:
        raise ConfigError(
            f"the adapter at {path} was made with code of a file, which is executed only if you name it; add "
            f"{' '.join(options)}"
        )


def run_of(folder: Path) -> RunFolder | None:
    """The run folder of an adapter folder, if it is in one."""
    from qpeft_lab.training.run_folder import RunFolder

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
    from qpeft.core.frame_file import with_frame_settings

    return with_frame_settings(config, folder)


def virtual_tokens(folder: Path) -> int:
    """Positions of the context that a prefix or a prompt occupies; 0 for other adapters."""
    config = adapter_config(folder)
    host = config.get("host")
    return config.get("num_virtual_tokens") or (host or {}).get("num_virtual_tokens") or 0
