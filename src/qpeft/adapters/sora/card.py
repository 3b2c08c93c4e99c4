"""The README.md of a SoRA folder, with its gates or exported without them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qpeft.adapters.folders.auto_class import base_class
from qpeft.adapters.folders.model_card import (
    EXPORT,
    NEEDS_QPEFT,
    front_matter,
    is_users_own,
    load_lines,
    read_config,
    tied_warning,
)
from qpeft.files import write_text

_SETTINGS = ("r", "lora_alpha", "shrink_budget", "sparse_lambda", "gate_init", "gate_lr_mult", "seed")


def write_card(folder: Path) -> None:
    """Describe the folder of an adapter with its gates, in which its config is already."""
    card, config = folder / "README.md", read_config(folder)
    if is_users_own(card):
        return
    base = config.get("base_model_name_or_path") or "BASE_MODEL"
    write_text(
        card,
        front_matter(base, "SoRA")
        + f"""# SoRA adapter with its gates: {NEEDS_QPEFT}

LoRA with a gate on each rank (arXiv 2311.11696); training moves gates to exact zero, and an export leaves their ranks
out. Without `import qpeft`, PEFT answers `KeyError: '{config.get("peft_type")}'`.

```python
{load_lines(base, ".", needs_qpeft=True, auto_class=base_class(config))}
```
{EXPORT}
Settings: {", ".join(f"`{name}={config[name]}`" for name in _SETTINGS if config.get(name) is not None)}.
""",
    )


def write_exported_card(folder: Path, base: str, record: Mapping[str, Any], *, tied: str | None) -> None:
    """Describe an exported folder; `record` is the content of its qpeft.json."""
    ranks = record["ranks"].values()
    write_text(
        folder / "README.md",
        front_matter(base, "LoRA")
        + f"""# Stock LoRA adapter: loading it needs PEFT alone

Of {record["rank_before"]} ranks in {len(ranks)} modules that SoRA trained ({record["n_trained"]:,} numbers, arXiv
2311.11696), {sum(ranks)} are left ({record["n_deployed"]:,} numbers); their gates are multiplied into `lora_B`.
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
