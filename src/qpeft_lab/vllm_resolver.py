"""A LoRA resolver for vLLM: compact adapters are served by name.

    request for `ana` or `ana@DIGEST` --> its compact adapter (revisions.py)
        --> qpeft.load and qpeft.export on the base, once --> cache --> vLLM

`pip install 'qpeft[lab,vllm]'` registers it in vLLM, by an entry point. Environment variables:

    QPEFT_ADAPTERS       the folder with the adapters' folders; without it there is no resolver
    QPEFT_BASE           folder or hub id of their base model; by default the one that vLLM serves
    QPEFT_CACHE          the folder of exported adapters; by default in /dev/shm, else ~/.cache
    QPEFT_CACHE_BYTES    the largest size of all exported adapters; by default 1 GB

Several servers, also of several versions, may use one cache. vLLM reads an adapter again after it
has dropped it from memory. So the exports that a running server was given are kept, and the others
are removed when the cache is full, the least recently used first.
"""

from __future__ import annotations

import asyncio
import copy
import fcntl
import hashlib
import logging
import math
import os
import secrets
import shutil
import stat
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qpeft.core.checkpoint import RECORD, check_folder
from qpeft.errors import BaseModelWarning, CheckpointError, ConfigError, QpeftError
from qpeft.files import read_json, write_json, write_text
from qpeft_lab import revisions
from qpeft_lab.base_files import own_template
from qpeft_lab.files import locked, remove_unfinished

_SHARED_MEMORY = Path("/dev/shm")
_HOME = "~/.cache/qpeft/vllm"
_DEFAULT_BYTES = 10**9
_SERVER = ".server-"  # start of the names of files in the cache
_NUMBERS = ".numbers"  # a file in the cache: the keys that have a number, a line each
_SEAL = "cached_as"  # in the record of a cached export: its key
_log = logging.getLogger("vllm.qpeft")  # vLLM shows the messages of its own loggers


class ExportCache:
    """The exported adapters of the compact ones in a folder, each exported when it is first needed.

    Args:
        adapters: Contains a compact adapter in a folder for each name.
        cache: A folder of its own for the exported adapters.
        limit: Bytes of all exported adapters.
        base: Folder or hub id of the base model. Default: the one that is named at the request.
    """

    def __init__(self, adapters: Path, cache: Path, limit: int, base: str | None = None) -> None:
        if not adapters.is_dir():
            raise ConfigError(
                f"QPEFT_ADAPTERS={adapters} is no folder; name the folder that contains the adapters"
            )
        self.adapters = adapters.resolve()
        self.cache = cache
        self.limit = limit
        self.base = base
        self._models: dict[str, Any] = {}  # the base model by its name
        self._fingerprints: dict[str, str] = {}  # of its files, by its name
        self._numbers: dict[str, int] = {}  # that this process gave, by the name of the export
        self._templated: set[str] = set()  # exports whose own chat template is in the log
        # a file with the exports that this process was given, locked while it runs
        self._given: int | None = None

    def find(self, name: str, served: str) -> Path | None:
        """The folder of the stock adapter of `name` on the base model `served`; None if there is no
        such adapter.

        The folder depends on the content: an adapter that was replaced is in another one.

        Raises:
            ConfigError: vLLM cannot load what it is exported to, the cache is full of served
                adapters, or cannot be written.
            CheckpointError: the adapter is damaged, its frame file is missing, or it is for another
                base model.
        """
        folder = revisions.find(self.adapters, name)
        if folder is None:
            _log.info("qpeft: %s has no adapter %.200r", self.adapters, name)
            return None
        try:
            with locked(self.cache, patience=math.inf):  # also against other threads
                return self._exported(folder, self.base or served)
        except (QpeftError, OSError) as error:
            if isinstance(error, OSError):
                kind = ConfigError
                text = f"the cache cannot be written ({error.strerror})"
            else:
                kind = type(error)
                text = str(error)
            reason = text.replace(f"{self.adapters}{os.sep}", "")  # a client may read it
            message = f"adapter {name!r} cannot be served: {reason}"
            _log.error("qpeft: %s", message)
            raise kind(message) from error

    def number(self, exported: Path) -> int:
        """The number of an export in vLLM: from 1 in the order of first use, the same for all servers
        of this cache.

        vLLM knows an adapter by its number, and keeps it in 32 bits: a hash of the content would be
        that of another adapter too often.
        """
        with locked(self.cache, patience=math.inf):
            file = self.cache / _NUMBERS
            if exported.name in self._numbers:
                return self._numbers[exported.name]
            keys = file.read_text(encoding="utf-8").split() if file.exists() else []
            # somebody may have removed the file: no number of this process is given twice
            keys += ["-"] * (max(self._numbers.values(), default=0) - len(keys))
            number = keys.index(exported.name) + 1 if exported.name in keys else None
            if number is None or number in self._numbers.values():
                keys.append(exported.name)
                number = len(keys)
                write_text(file, "".join(f"{key}\n" for key in keys))
            self._numbers[exported.name] = number
            return number

    def _exported(self, folder: Path, base: str) -> Path:
        """The export of the adapter in `folder`; the cache is locked."""
        from qpeft_lab.base_model import fingerprint, load_config

        digest = revisions.revision(folder)
        if base not in self._fingerprints:
            self._fingerprints[base] = fingerprint(base, load_config(base))
        # another version may export other bits, and another base must refuse the adapter
        parts = (self._fingerprints[base], digest, version("qpeft"))
        key = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]
        target = self.cache / key
        if _is_sealed(target):
            os.utime(target)  # used last
        else:
            remove_unfinished(self.cache)  # after a kill
            if target.is_symlink():
                target.unlink()
            elif target.exists():
                shutil.rmtree(target)
            self._export(folder, base, target)
            write_json(target / RECORD, {**read_json(target / RECORD), _SEAL: key})
            try:
                if revisions.revision(folder) != digest:
                    raise CheckpointError("it was replaced while it was read; ask again")
                self._make_room(target)
            except QpeftError:
                shutil.rmtree(target)
                raise
        if own_template(folder) is not None and key not in self._templated:
            self._templated.add(key)
            _log.warning(
                "qpeft: %s was trained with a chat template of its own; chats are asked in that of the"
                " server, see vllm serve --chat-template",
                folder.name,
            )
        if not folder.name.startswith("."):
            self._keep(folder, digest)
        if self._given is None:
            file = self.cache / f"{_SERVER}{secrets.token_hex(4)}"
            self._given = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
            fcntl.flock(self._given, fcntl.LOCK_EX)
        os.write(self._given, f"{key}\n".encode())
        return target

    def _keep(self, folder: Path, digest: str) -> None:
        """Keep this revision, if the adapters' folder can be written."""
        try:
            revisions.keep(folder, digest)
        except OSError as error:
            _log.warning("qpeft: revision %s is not kept: %s", digest, error.strerror)

    def _export(self, folder: Path, base: str, target: Path) -> None:
        """Export the adapter in `folder`, on a copy of the base that shares its weights."""
        import qpeft
        from qpeft_lab.base_model import load_model
        from qpeft_lab.stock_servers import refusals

        if base not in self._models:
            self._models[base] = load_model(base, "auto").eval()
        kept = self._models[base]
        shared = {id(tensor): tensor for tensor in (*kept.parameters(), *kept.buffers())}
        model = copy.deepcopy(kept, shared)
        with warnings.catch_warnings(action="ignore"):  # of PEFT
            warnings.simplefilter("error", BaseModelWarning)
            try:
                adapted: Any = qpeft.load(model, folder)
            except BaseModelWarning as warning:
                raise CheckpointError(str(warning).partition(";")[0]) from warning
            config = adapted.peft_config["default"]
            if reasons := refusals(config, kept.config.model_type, certain=True):
                raise ConfigError("; ".join(reasons))
            qpeft.export(adapted.eval(), target)

    def _make_room(self, new: Path) -> None:
        """Remove the least recently used exports that no running server was given, until all fit,
        with `new`.
        """
        given = {new.name}
        for file in self.cache.glob(f"{_SERVER}*"):
            with file.open() as opened:
                try:
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    file.unlink()  # its server has ended
                except BlockingIOError:
                    given |= {*opened.read().split()}
        exports = [
            entry
            for entry in self.cache.iterdir()
            if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith(".")
        ]
        sizes = {entry: sum(file.stat().st_size for file in entry.iterdir()) for entry in exports}
        total = sum(sizes.values())
        for entry in sorted(sizes, key=lambda entry: entry.stat().st_mtime_ns):
            if total > self.limit and entry.name not in given:
                shutil.rmtree(entry)
                total -= sizes[entry]
        if total > self.limit:
            raise ConfigError(
                f"the adapters that are served and this one take {total:,} bytes, and"
                f" QPEFT_CACHE_BYTES allows {self.limit:,}; allow more, or restart the server"
            )


def _is_sealed(export: Path) -> bool:
    """Whether a folder of the cache contains the export that belongs there, whole.

    Somebody may have damaged it, or exchanged it for that of another adapter, which is whole, too.
    """
    try:
        check_folder(export)
        return not export.is_symlink() and read_json(export / RECORD).get(_SEAL) == export.name
    except (CheckpointError, FileNotFoundError):
        return False


def default_cache() -> Path:
    """A folder of this user's own in memory, or in the home folder.

    Others may write into /dev/shm: a folder there is used only if nobody else owns or writes it.
    """
    place = _SHARED_MEMORY / f"qpeft-{os.getuid()}"
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        state = place.lstat()
        is_own = stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid()
        if is_own and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return place
    except OSError:  # there is no /dev/shm, or a file of this name
        pass
    return Path(_HOME).expanduser()


def register() -> None:
    """Register the resolver with vLLM, which calls this in each of its processes when it starts.

    Raises ConfigError for environment variables that cannot be used.
    """
    adapters = os.environ.get("QPEFT_ADAPTERS")
    if not adapters:
        return
    from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]
    from vllm.lora.resolver import (  # type: ignore[import-not-found]
        LoRAResolver,
        LoRAResolverRegistry,
    )

    limit = os.environ.get("QPEFT_CACHE_BYTES", f"{_DEFAULT_BYTES}")
    if not limit.isdecimal():
        raise ConfigError(f"QPEFT_CACHE_BYTES={limit} is no number of bytes")
    named = os.environ.get("QPEFT_CACHE")
    cache = Path(named).expanduser() if named else default_cache()
    base = os.environ.get("QPEFT_BASE")
    exports = ExportCache(Path(adapters).expanduser(), cache, int(limit), base)

    class Resolver(LoRAResolver):
        """Hands vLLM the exported adapter of a name."""

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            path = await asyncio.to_thread(exports.find, lora_name, base_model_name)
            if path is None:
                return None
            number = await asyncio.to_thread(exports.number, path)
            return LoRARequest(lora_name=lora_name, lora_int_id=number, lora_path=str(path))

    LoRAResolverRegistry.register_resolver("qpeft", Resolver())
    _log.info("qpeft: serves the adapters in %s by their names", exports.adapters)
    if not os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        _log.warning("qpeft: vLLM asks for no adapter without VLLM_ALLOW_RUNTIME_LORA_UPDATING=1")
