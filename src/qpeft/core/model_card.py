"""The README.md of an adapter folder: its kind, and how to load it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from peft.utils import CONFIG_NAME

from qpeft.core.meta_model import AUTO_CLASSES
from qpeft.files import read_json, write_text

_PEFT_TEMPLATE = b"# Model Card for Model ID"
_MARK = (
    b"<!-- made by qpeft, and made again when it saves: delete this line to keep your changes -->"
)


def load_lines(
    base: str,
    folder: str,
    registered: type | None,
    *,
    auto_class: str = "AutoModelForCausalLM",
    options: Mapping[str, Any] | None = None,
) -> str:
    """The lines of Python that load an adapter folder on its base in float32.

    The module of the class `registered` must be imported first, if it is not qpeft's. None: PEFT
    alone loads the folder. `options` are further arguments of the base's `from_pretrained`, such as
    the number of classes.
    """
    all_options = {"dtype": "float32", **(options or {})}
    if base.endswith(".gguf"):  # transformers wants its folder and its name
        where, all_options["gguf_file"] = os.path.split(base)
        base = where or "."
    arguments = "".join(f", {name}={value!r}" for name, value in all_options.items())
    loads = "qpeft.load" if registered else "PeftModel.from_pretrained"
    lines = [
        "import qpeft" if registered else "from peft import PeftModel",
        f"from transformers import {auto_class}",
        f"model = {loads}({auto_class}.from_pretrained({base!r}{arguments}), {folder!r})",
    ]
    if registered is not None and registered.__module__.partition(".")[0] != "qpeft":
        lines.insert(0, f"import {registered.__module__}  # registers {registered.__name__}")
    return "\n".join(lines)


def write_card(folder: Path, registered: type | None = None) -> None:
    """Describe a folder that contains its config; a card of the user is kept. `registered` is as in
    `load_lines`.
    """
    if users_card(folder) is not None:
        return
    config = read_json(folder / CONFIG_NAME)
    base = config.get("base_model_name_or_path") or ""
    kind = config["peft_type"].removeprefix("QPEFT_").lower().replace("_", "-")
    mapping = config.get("auto_mapping")  # for an adapter without a task
    recorded = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    of_task = AUTO_CLASSES.get(str(config.get("task_type")))
    auto_class = of_task or recorded or "AutoModelForCausalLM"
    code = load_lines(base or "BASE_MODEL", ".", registered, auto_class=auto_class)
    text = (
        f"---\n{metadata(base, kind)}\n---\n\n"
        f"# Adapter {kind}: loading it needs {'qpeft' if registered else 'PEFT alone'}\n\n"
        f"```python\n{code}\n```\n\n"
        f"How it was made: `{CONFIG_NAME if registered else 'qpeft.json'}`.\n\n{_MARK.decode()}\n"
    )
    write_text(folder / "README.md", text)


def users_card(folder: Path) -> bytes | None:
    """The README.md of an adapter folder if a user wrote or changed it; None if it is missing, or
    qpeft's or PEFT's.
    """
    path = folder / "README.md"
    content = path.read_bytes() if path.is_file() else _PEFT_TEMPLATE
    behind = content.rpartition(_MARK)[2].strip()
    # release 0.2 wrote the classes behind the mark
    is_own = _MARK in content and (not behind or behind.startswith(b"## Outputs"))
    return None if _PEFT_TEMPLATE in content or is_own else content


def add_sections(card: Path, sections: Sequence[str]) -> None:
    """Write sections at the end of a card, in front of the line that says that qpeft made it."""
    text = card.read_text(encoding="utf-8")
    mark = _MARK.decode()
    own = text.removesuffix(f"{mark}\n")
    ending = "" if own == text else f"\n{mark}\n"
    write_text(card, "\n".join([own.rstrip() + "\n", *sections]) + ending)


def keep_card(old: Path, new: Path) -> None:
    """Copy the card from the folder `old` to `new`, if it is a user's."""
    if (card := users_card(old)) is not None:
        (new / "README.md").write_bytes(card)


def metadata(base: str, kind: str) -> str:
    """The metadata of a card, as YAML; with the base if it is a name on the hub."""
    try:
        validate_repo_id(base)
        named = None if Path(base).exists() else base
    except HFValidationError:
        named = None
    return ModelCardData(base_model=named, library_name="peft", tags=[kind, "qpeft"]).to_yaml()
