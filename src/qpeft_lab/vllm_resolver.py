"""A LoRA resolver for vLLM: compact adapters are served by name, and exported when they are first asked for.

    request names an adapter --> its compact adapter --> qpeft.load and qpeft.export on the base --> cache --> vLLM

`pip install 'qpeft[vllm]'` in vLLM's environment registers it. It is configured by environment variables:

    QPEFT_ADAPTERS       the folder with a folder of `qpeft.save` for each adapter; without it, there is no resolver
    QPEFT_BASE           folder or hub id of the adapters' base model; by default the model that vLLM serves
    QPEFT_CACHE          the folder for exported adapters; by default ~/.cache/qpeft/vllm
    QPEFT_CACHE_BYTES    the largest total size of the exported adapters; by default 10 GB

Several servers may use one cache. vLLM reads an adapter again after it has dropped it from memory, so the exports
that a running server was given are kept; the others are removed when the cache is full, the least recently used first.
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
import warnings
from pathlib import Path
from typing import Any

from qpeft.errors import BaseModelWarning, CheckpointError, ConfigError, QpeftError
from qpeft.files import file_hash
from qpeft_lab.files import locked, remove_unfinished

_FILES = ("adapter_config.json", "adapter_model.safetensors")
_SERVER = ".server-"  # start of the names of files in the cache
_log = logging.getLogger("vllm.qpeft")  # vLLM shows the messages of its own loggers


class ExportCache:
    """The exported adapters of the compact ones in a folder, exported when they are first needed.

    Args:
        adapters: Contains a folder of `qpeft.save` for each name.
        cache: A folder of its own for the exported adapters.
        limit: Bytes of all exported adapters.
        base: Folder or hub id of the base model. Default: the one that is named at the request.
    """

    def __init__(self, adapters: Path, cache: Path, limit: int, base: str | None = None) -> None:
        if not adapters.is_dir():
            raise ConfigError(f"QPEFT_ADAPTERS={adapters} is no folder; name the folder that contains the adapters")
        self.adapters, self.cache, self.limit, self.base = adapters.resolve(), cache, limit, base
        self._models: dict[str, Any] = {}  # the base model by its name
        self._given: int | None = None  # a file with the exports that this process was given, locked while it runs

    def find(self, name: str, served: str) -> Path | None:
        """The folder of the stock adapter of `name` on the base model `served`; None if there is no such adapter.

        The folder depends on the content: an adapter that was replaced is in another one.

        Raises:
            ConfigError: vLLM cannot load what it is exported to, or the cache is full of served adapters.
            CheckpointError: the adapter is damaged, its frame file is missing, or it is for another base model.
        """
        folder = self.adapters / name
        if Path(name).name != name or name[:1] in ("", ".") or not folder.is_dir():
            _log.info("qpeft: %s has no adapter %r", self.adapters, name)
            return None
        try:
            with locked(self.cache, patience=math.inf):  # also against other threads
                return self._exported(folder, self.base or served)
        except QpeftError as error:
            reason = str(error).replace(f"{self.adapters}{os.sep}", "")  # a client may read it
            message = f"adapter {name!r} cannot be served: {reason}"
            _log.error("qpeft: %s", message)
            raise type(error)(message) from error

    def _exported(self, folder: Path, base: str) -> Path:
        target = self.cache / (key := _key(folder, base))
        if target.is_dir():
            os.utime(target)  # used last
        else:
            remove_unfinished(self.cache)  # after a kill
            self._export(folder, base, target)
            try:
                if _key(folder, base) != key:
                    raise CheckpointError("it was replaced while it was read; ask again")
                self._make_room(target)
            except QpeftError:
                shutil.rmtree(target)
                raise
        if self._given is None:
            self._given = os.open(self.cache / f"{_SERVER}{secrets.token_hex(4)}", os.O_WRONLY | os.O_CREAT)
            fcntl.flock(self._given, fcntl.LOCK_EX)
        os.write(self._given, f"{key}\n".encode())
        return target

    def _export(self, folder: Path, base: str, target: Path) -> None:
        import qpeft
        from qpeft_lab.base_model import load_model
        from qpeft_lab.stock_servers import refusals

        if base not in self._models:
            self._models[base] = load_model(base, "auto").eval()
        kept = self._models[base]
        model = copy.deepcopy(kept, {id(tensor): tensor for tensor in (*kept.parameters(), *kept.buffers())})
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
        """Remove the least recently used exports that no running server was given, until all fit, with `new`."""
        given = {new.name}
        for file in self.cache.glob(f"{_SERVER}*"):
            with file.open() as opened:
                try:
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    file.unlink()  # its server has ended
                except BlockingIOError:
                    given |= {*opened.read().split()}
        exports = [entry for entry in self.cache.iterdir() if not entry.name.startswith(".")]
        sizes = {export: sum(file.stat().st_size for file in export.iterdir()) for export in exports}
        total = sum(sizes.values())
        for entry in sorted(sizes, key=lambda entry: entry.stat().st_mtime_ns):
            if total > self.limit and entry.name not in given:
                shutil.rmtree(entry)
                total -= sizes[entry]
        if total > self.limit:
            raise ConfigError(
                f"the adapters that are served and this one take {total:,} bytes, and QPEFT_CACHE_BYTES allows "
                f"{self.limit:,}; allow more, or restart the server"
            )


def _key(folder: Path, base: str) -> str:
    """Identifies the adapter's content and its base model. Raises CheckpointError if a file is missing."""
    try:  # the config has the hash of the frame file
        parts = [base, *(file_hash(folder / name) for name in _FILES)]
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read ({error.strerror}); save the adapter again") from error
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


def register() -> None:
    """Register the resolver with vLLM, which calls this in each of its processes when it starts.

    Raises ConfigError for environment variables that cannot be used.
    """
    if not (adapters := os.environ.get("QPEFT_ADAPTERS")):
        return
    from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry  # type: ignore[import-not-found]

    limit = os.environ.get("QPEFT_CACHE_BYTES", f"{10**10}")
    if not limit.isdecimal():
        raise ConfigError(f"QPEFT_CACHE_BYTES={limit} is no number of bytes")
    cache = Path(os.environ.get("QPEFT_CACHE", "~/.cache/qpeft/vllm")).expanduser()
    exports = ExportCache(Path(adapters).expanduser(), cache, int(limit), os.environ.get("QPEFT_BASE"))

    class Resolver(LoRAResolver):
        """Hands vLLM the exported adapter of a name."""

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            path = await asyncio.to_thread(exports.find, lora_name, base_model_name)
            if path is None:
                return None
            return LoRARequest(lora_name=lora_name, lora_int_id=1 + int(path.name[:7], 16), lora_path=str(path))

    LoRAResolverRegistry.register_resolver("qpeft", Resolver())
