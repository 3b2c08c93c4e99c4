"""The README.md of an adapter folder: its kind, and how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from peft.utils import CONFIG_NAME

from qpeft.circuits.ansatz import OWN_ANSATZE
from qpeft.core.meta_model import base_class
from qpeft.files import write_text

NEEDS_QPEFT = "loading it needs qpeft"  # in the title of each card for such a folder
NOT_STOCK = "Stock PEFT has no such adapter, nor can it be merged into the base."
_HUB_ID = re.compile(
    r"\w[\w.-]{0,95}(/[\w.-]{1,96})?", re.ASCII
)  # not a path, nor a text that adds entries to the card
_PEFT_TEMPLATE = "# Model Card for Model ID"
EXPORT = """
For a folder that plain PEFT loads, with no qpeft at inference:

```python
qpeft.export(model, "exported")
```
"""


def load_lines(
    base: str,
    folder: str,
    *,
    needs_qpeft: bool,
    auto_class: str = "AutoModelForCausalLM",
    options: Mapping[str, Any] | None = None,
    registered: type | None = None,
) -> str:
    """The lines of Python that load an adapter folder on its base in float32.

    `options` are further arguments of the base's `from_pretrained`, such as the number of classes. `registered` is the
    class whose module must be imported first, if it is not qpeft's.
    """
    arguments = "".join(f", {name}={value!r}" for name, value in {"dtype": "float32", **(options or {})}.items())
    loaded = f"{auto_class}.from_pretrained({base!r}{arguments})"
    return _own_import(registered) + "\n".join(
        [
            "import qpeft" if needs_qpeft else "from peft import PeftModel",
            f"from transformers import {auto_class}",
            f"model = {'qpeft.load' if needs_qpeft else 'PeftModel.from_pretrained'}({loaded}, {folder!r})",
        ]
    )


class Card(NamedTuple):
    """What the README.md of an adapter folder that needs qpeft describes."""

    title: str  # the kind of adapter
    tag: str  # for the card's metadata
    what: str  # what the folder contains
    settings: Mapping[str, Any]  # the options that matter
    can_export: bool = False  # whether stock PEFT has an equal adapter


def write_card(folder: Path, card: Card, registered: type) -> None:
    """Describe a folder that contains its config and needs qpeft; a card written by the user is kept.

    The module of the class `registered` must be imported before the folder is loaded, if it is not qpeft's.
    """
    if is_users_own(folder / "README.md"):
        return
    config = read_config(folder)
    shown = ", ".join(f"`{name}={value}`" for name, value in card.settings.items() if value is not None)
    _write(
        folder,
        f"{card.title}: {NEEDS_QPEFT}",
        card.tag,
        f"{card.what}\nWithout the imports below, PEFT raises `KeyError: '{config.get('peft_type')}'`.\n",
        _own_ansatz(card.settings) + _load_lines(config, needs_qpeft=True, registered=registered),
        f"{EXPORT if card.can_export else ''}\nSettings: {shown}.\n",
    )


def write_stock_card(folder: Path, host: str, origin: str, record: Mapping[str, Any], *, tied: str | None) -> None:
    """Describe an exported folder: the `origin` of its parameters and the `record` in its qpeft.json."""
    _write(
        folder,
        f"Stock {host} adapter: loading it needs PEFT alone",
        host,
        f"{origin}\n{tied_warning(tied)}",
        _load_lines(read_config(folder), needs_qpeft=False),
        f"\nHow it was made and verified (`qpeft.json`):\n\n```json\n{json.dumps(dict(record), indent=2)}\n```\n",
    )


def _write(folder: Path, title: str, tag: str, what: str, code: str, after: str) -> None:
    front = front_matter(read_config(folder).get("base_model_name_or_path") or "", tag)
    write_text(folder / "README.md", f"{front}# {title}\n\n{what}\n```python\n{code}\n```\n{after}")


def _base(config: Mapping[str, Any]) -> str:
    return config.get("base_model_name_or_path") or "BASE_MODEL"


def _load_lines(config: Mapping[str, Any], *, needs_qpeft: bool, registered: type | None = None) -> str:
    kind = base_class(config)
    return load_lines(_base(config), ".", needs_qpeft=needs_qpeft, auto_class=kind, registered=registered)


def _own_ansatz(settings: Mapping[str, Any]) -> str:
    name = settings.get("ansatz")
    return "" if name in (None, *OWN_ANSATZE) else f"# first import the module that registers the ansatz {name!r}\n"


def _own_import(registered: type | None) -> str:
    module = "qpeft" if registered is None else registered.__module__
    if module.partition(".")[0] == "qpeft":
        return ""
    if module == "__main__":
        return f"# first run the code that registers {registered.__name__}\n"  # type: ignore[union-attr]
    return f"import {module}  # registers {registered.__name__}\n"  # type: ignore[union-attr]


def tied_warning(tied: str | None) -> str:
    """A warning about merging into a base whose target `tied` shares its weight with the input embedding."""
    return (
        f"\n**Do not merge it into the base without untying it:** `{tied}` is tied to the input embedding, which "
        "merging would change as well. Untie it first: `qpeft.untie_lm_head(model)`.\n"
        if tied
        else ""
    )


def is_users_own(card: Path) -> bool:
    """Whether the card exists and was written by neither qpeft nor PEFT."""
    return card.exists() and not any(mark in card.read_text(encoding="utf-8") for mark in (NEEDS_QPEFT, _PEFT_TEMPLATE))


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))


def front_matter(base: str, host: str) -> str:
    tag = host.lower().replace(" ", "-")
    named = f"base_model: {base}\n" if _HUB_ID.fullmatch(base) and not Path(base).exists() else ""
    return f"---\n{named}library_name: peft\ntags:\n- {tag}\n- qpeft\n---\n\n"
