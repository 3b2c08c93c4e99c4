"""The README.md of an adapter folder: what it is, and whether loading it needs qpeft."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME

from qpeft.core.meta_model import base_class
from qpeft.files import write_text

NEEDS_QPEFT = "loading it needs qpeft"  # in the title of each card of ours for such a folder
NOT_STOCK = "Stock PEFT has no such adapter, nor can it be merged into the base."
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
) -> str:
    """The lines of Python that load an adapter folder on its base, in the float32 that it was trained with.

    `options` are what the base needs in addition to its name, such as the number of classes.
    """
    told = "".join(f", {name}={value!r}" for name, value in {"dtype": "float32", **(options or {})}.items())
    loaded = f"{auto_class}.from_pretrained({base!r}{told})"
    return "\n".join(
        [
            "import qpeft" if needs_qpeft else "from peft import PeftModel",
            f"from transformers import {auto_class}",
            f"model = {'qpeft.load' if needs_qpeft else 'PeftModel.from_pretrained'}({loaded}, {folder!r})",
        ]
    )


def write_compact_card(
    folder: Path,
    config: Mapping[str, Any],
    description: Mapping[str, Any],
    registered: type,
    *,
    has_stock_form: bool = True,
) -> None:
    """Describe a compact folder, instead of the empty card that PEFT wrote; a card of the user's own is kept.

    `registered` is the class of settings whose module must be imported before the folder is loaded.
    """
    card = folder / "README.md"
    if is_users_own(card):
        return
    base = config.get("base_model_name_or_path") or "BASE_MODEL"
    numbers = sum(_size(shape) for _, shape in config.get("generated") or [])
    write_text(
        card,
        front_matter(base, _host(description))
        + f"""# Compact adapter: {NEEDS_QPEFT}

This folder holds the *generator* of {_a(_host(description))} adapter, not the adapter itself.
The generator produces {numbers:,} adapter parameters in {len(config.get("generated") or [])} tensors.
Without these imports, PEFT answers `KeyError: '{config.get("peft_type")}'`.

```python
{_own_import(registered)}{load_lines(base, ".", needs_qpeft=True, auto_class=base_class(config))}
```
{EXPORT if has_stock_form else ""}
Method: {description["method"]}. The generated parameters come from exact probabilities, whatever backend trained the
circuit.

Settings: {", ".join(f"`{k}={v}`" for k, v in description.items() if k not in ("method", "host"))}.
""",
    )


def _own_import(registered: type) -> str:
    """The line that a method or generator from outside of qpeft needs."""
    module = registered.__module__
    if module.partition(".")[0] == "qpeft":
        return ""
    if module == "__main__":
        return f"# first run what registers {registered.__name__}\n"
    return f"import {module}  # registers {registered.__name__}\n"


def write_stock_card(
    folder: Path, base: str, host: str, origin: str, record: Mapping[str, Any], *, tied: str | None
) -> None:
    """Describe an exported folder: the `origin` of its parameters and the `record` in its qpeft.json."""
    write_text(
        folder / "README.md",
        front_matter(base, host)
        + f"""# Stock {host} adapter: loading it needs PEFT alone

{origin}
{tied_warning(tied)}
```python
{load_lines(base, ".", needs_qpeft=False, auto_class=base_class(read_config(folder)))}
```

How it was made and verified (`qpeft.json`):

```json
{json.dumps(dict(record), indent=2)}
```
""",
    )


def tied_warning(tied: str | None) -> str:
    """What to know before merging into a base whose target `tied` is its input embedding as well."""
    return (
        f"\n**Do not merge it into the base as it is:** `{tied}` is tied to the input embedding, which merging would "
        "change as well. Untie it first: `qpeft.untie_lm_head(model)`.\n"
        if tied
        else ""
    )


def write_own_card(
    folder: Path, title: str, *, tag: str, what: str, settings: tuple[str, ...], export: str = ""
) -> None:
    """Describe the folder, in which the config is already, of an adapter that PEFT alone cannot load."""
    card, config = folder / "README.md", read_config(folder)
    if is_users_own(card):
        return
    base = config.get("base_model_name_or_path") or "BASE_MODEL"
    write_text(
        card,
        front_matter(base, tag)
        + f"""# {title}: {NEEDS_QPEFT}

{what}
Without `import qpeft`, PEFT answers `KeyError: '{config.get("peft_type")}'`.

```python
{load_lines(base, ".", needs_qpeft=True, auto_class=base_class(config))}
```
{export}
Settings: {", ".join(f"`{name}={config[name]}`" for name in settings if config.get(name) is not None)}.
""",
    )


def is_users_own(card: Path) -> bool:
    """Neither ours nor PEFT's."""
    return card.exists() and not any(mark in card.read_text(encoding="utf-8") for mark in (NEEDS_QPEFT, _PEFT_TEMPLATE))


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))


def _host(description: Mapping[str, Any]) -> str:
    """The adapter that is generated, LoRA unless the description says otherwise."""
    return description.get("host", "LoRA")


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "AEIO" else f"a {name}"


def front_matter(base: str, host: str) -> str:
    tag = host.lower().replace(" ", "-")
    named = "" if Path(base).exists() else f"base_model: {base}\n"  # a hub knows no folder of this machine
    return f"---\n{named}library_name: peft\ntags:\n- {tag}\n- qpeft\n---\n\n"


def _size(shape: list[int]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size
