"""The options that name an adapter and its base model, shared by several commands, and the folder
that they mean.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from qpeft import methods
from qpeft.checks import option
from qpeft.errors import BaseModelWarning, CheckpointError, ConfigError, InputError
from qpeft.files import file_hash
from qpeft.folders import repair_folder
from qpeft.user_code import is_file
from qpeft_lab.base_files import own_template
from qpeft_lab.demo import base_model
from qpeft_lab.user_files import FRAMES, file_hashes, named_ansatz

if TYPE_CHECKING:
    from qpeft_lab.training.run_folder import RunFolder

CONFIG = "adapter_config.json"
_FILES = ("method", "ansatz", FRAMES)  # options of files that an adapter may need


@dataclass(kw_only=True)
class Loading:
    """What an adapter needs to be loaded."""

    model: str | None = option(
        None,
        "Base model, as for train. Default: the one that the adapter names.",
        metavar="ID|PATH",
    )
    method: str | None = option(
        None,
        "For an adapter of your own method: the file that registers it. Loading an adapter never"
        " imports code.",
        metavar="FILE.py:NAME",
    )
    ansatz: str | None = option(
        None,
        "For an adapter with an ansatz of your own: the file that registers it.",
        metavar="FILE.py:NAME",
    )
    frames: Path | None = option(
        None,
        "Frame file of an adapter that refers to one. Default: the one that its run was given, or"
        " one in the adapter's folder or in two folders above.",
        metavar="FILE",
    )
    trust_remote_code: bool = option(
        False, "Execute Python code that the base model's folder or repository contains."
    )

    def find(self, path: Path) -> Path:
        """The adapter folder: `path` or its sub-folder `adapter`.

        The files of a method and an ansatz are executed. If the adapter refers to the frame file
        that its run was given, `frames` is this file from then on, unless it is set.

        Raises:
            CheckpointError: neither folder has a config, or `frames` is another file.
            ConfigError: there is no file `frames`, a file of the method or ansatz is missing or not
                given, or the adapter does not need one that is given.
        """
        for name, use in (("method", methods.get), ("ansatz", named_ansatz)):
            if (value := getattr(self, name)) is None:
                continue
            if not is_file(value):
                raise ConfigError(
                    f"--{name} names the file of your own {name}, FILE.py:NAME, got {value!r}; leave"
                    " it out: the adapter names what is part of qpeft"
                )
            use(value)
        for place in (path, path / "adapter"):
            repair_folder(place)
        folder = next(
            (place for place in (path, path / "adapter") if (place / CONFIG).is_file()), None
        )
        if folder is None:
            raise CheckpointError(f"no adapter at {path}: {_why_none(path)}")
        settings: dict[str, Any] = {}
        hashes: dict[str, str] = {}
        if (run := run_of(folder)) is not None and folder.resolve() == run.adapter:
            recorded, hashes = run.recorded()
            settings = recorded.method_settings | {"method": recorded.method}
        for name in ("method", "ansatz"):
            # the folder may come from someone else
            if is_file(settings.get(name)) and getattr(self, name) is None:
                raise ConfigError(
                    f"the adapter at {path} was made with code of a file, which is executed only if"
                    f" you name it; add --{name} {quote(settings[name])}"
                )
        self._refuse_unused(folder)
        if self.method is not None and "method" in hashes:
            self._refuse_changed(path, hashes["method"])
        if (
            self.frames is None
            and settings.get(FRAMES)
            and _refers_to(folder, Path(settings[FRAMES]))
        ):
            self.frames = Path(settings[FRAMES])
        return folder

    def _refuse_changed(self, path: Path, trained_with: str) -> None:
        """Raise ConfigError if the file of the method is not that of the run, by its hash."""
        if file_hashes(self.method, {}, {})["method"] != trained_with:
            raise ConfigError(
                f"{self.method} or a module that it imports changed since the run {path}, so its"
                " adapter would be another one; restore it, or copy the folder adapter elsewhere to"
                " load it with the changed code"
            )

    def _refuse_unused(self, folder: Path) -> None:
        """Raise ConfigError for a file that loading this adapter does not need."""
        given = [name for name in _FILES if getattr(self, name) is not None]
        if not given:
            return
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        content = adapter_config(folder, self.frames)
        generator = content.get("generator") or {}  # of `qpeft.attach`
        config = PEFT_TYPE_TO_CONFIG_MAPPING[content["peft_type"]]
        needed = [FRAMES] if "frames_sha256" in content else []
        if self.ansatz is not None and named_ansatz(self.ansatz) in (
            content.get("ansatz"),
            generator.get("ansatz"),
        ):
            needed.append("ansatz")
        if generator or (
            self.method is not None and config is methods.get(self.method).config_class
        ):
            needed.append("method")
        for name in given:
            if name not in needed:
                raise ConfigError(
                    f"the adapter at {folder} needs no file of --{name}; leave it out, or name the"
                    " adapter that needs it"
                )

    def base(self, folder: Path | None) -> str:
        """The base model: `model`, or the one in the config of the adapter. Raises InputError if
        there is none.
        """
        named = self.model
        if not named and folder is not None:
            named = adapter_config(folder, self.frames).get("base_model_name_or_path")
        if not named:
            raise InputError("no base model; pass --model, or an adapter that names one")
        found = base_model(str(named))
        if folder is not None:
            self._note_another_base(folder, found)
        return found

    def _note_another_base(self, folder: Path, base: str) -> None:
        """Warn of another base than that of the run. A stock adapter does not record its base, and
        another one only the weights that it adapts.
        """
        from qpeft_lab.base_model import fingerprint

        run = run_of(folder)
        if run is None:
            return
        trained_on = run.recorded()[1].get("model", "")
        is_file = trained_on.startswith("sha256:") and Path(base).exists()
        if is_file and fingerprint(base) != trained_on:
            warnings.warn(
                f"the files of {base} are not those of the base on which {run.path} was trained;"
                " the results are not those of its training",
                BaseModelWarning,
                stacklevel=1,
            )


@dataclass(kw_only=True)
class OptionalAdapter(Loading):
    """A base model, with an adapter on it or alone."""

    adapter: Path | None = option(
        None, "Run folder, or adapter folder (compact or stock). Default: the base model alone."
    )

    def find_given(self) -> Path | None:
        """The folder of `adapter`, as `find`; None for the base model alone.

        Raises InputError for an option that only an adapter needs.
        """
        if self.adapter is not None:
            return self.find(self.adapter)
        for name in _FILES:
            if getattr(self, name) is not None:
                raise InputError(
                    f"--{name} is for loading an adapter; add --adapter, or leave it out"
                )
        return None


def _why_none(path: Path) -> str:
    """Why there is no adapter in this folder."""
    if (path / "exported" / "config.json").is_file():
        return (
            "this run trained the whole model; leave the adapter out, and give"
            f" --model {quote(str(path / 'exported'))}"
        )
    if (path / "metrics.jsonl").is_file() and not (path / "result.json").is_file():
        return "this run has not ended; run its command again to resume it"
    return f"expected a folder with {CONFIG}, or a run folder"


def run_of(folder: Path, with_checkpoints: bool = False) -> RunFolder | None:
    """The run folder of an adapter folder, if it is in one; `with_checkpoints` also of those of
    intermediate steps, which do not have the run's scores.
    """
    from qpeft_lab.training.run_folder import RunFolder

    run = RunFolder(folder.resolve().parent.parent)
    if with_checkpoints and run.config.is_file() and folder.resolve().parent == run.checkpoints:
        return run
    run = RunFolder(folder.resolve().parent)
    return run if run.config.is_file() and folder.resolve() in (run.adapter, run.exported) else None


def template_of(folder: Path, run: RunFolder | None) -> str | None:
    """The chat template with which an adapter was trained, as a path or a name: next to it, in its
    run, or in the settings of its run. Raises ConfigError if it is a file that has changed.
    """
    template = own_template(folder) or (None if run is None else own_template(run.adapter))
    if template is not None or run is None:
        return template
    settings, hashes = run.recorded()
    wanted = hashes.get("chat_template")
    file = Path(settings.chat_template or "").expanduser()
    if wanted is not None and file.is_file() and file_hash(file) != wanted:
        raise ConfigError(f"the chat template {file} changed since the run {run.path}; restore it")
    return settings.chat_template


def _refers_to(folder: Path, frames: Path) -> bool:
    """Whether the adapter in `folder` refers to the file `frames`."""
    from qpeft.core.checkpoint import check_folder

    wanted = check_folder(folder).get("frames_sha256")
    return frames.is_file() and file_hash(frames) == wanted


def adapter_config(folder: Path, frames: Path | None = None) -> dict[str, Any]:
    """The content of adapter_config.json. Raises CheckpointError if a file of the adapter is
    missing or damaged.
    """
    from qpeft.core.checkpoint import check_folder
    from qpeft.core.frame_file import with_frame_settings

    return with_frame_settings(check_folder(folder), folder, frames).content
