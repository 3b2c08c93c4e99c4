"""The README.md of a SoRA folder, with its gates or exported without them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qpeft.core.model_card import EXPORT, write_own_card, write_stock_card


def write_card(folder: Path) -> None:
    """Describe the folder of an adapter with its gates, in which its config is already."""
    write_own_card(
        folder,
        "SoRA adapter with its gates",
        tag="sora",
        what="LoRA with a gate on each rank (arXiv 2311.11696); training moves gates to exact zero, and an export "
        "leaves their ranks\nout.",
        settings=("r", "lora_alpha", "shrink_budget", "sparse_lambda", "gate_init", "gate_lr_mult", "seed"),
        export=EXPORT,
    )


def write_exported_card(folder: Path, base: str, record: Mapping[str, Any], *, tied: str | None) -> None:
    """Describe an exported folder; `record` is the content of its qpeft.json."""
    ranks = record["ranks"].values()
    made = (
        f"Of {record['rank_before']} ranks in {len(ranks)} modules that SoRA trained ({record['n_trained']:,} "
        f"parameters, arXiv\n2311.11696), {sum(ranks)} are left ({record['n_deployed']:,} parameters); their gates are "
        "multiplied into `lora_B`."
    )
    write_stock_card(folder, base, "LoRA", made, record, tied=tied)
