"""Write the study of stage 6: the untouched model, LoRA r=8, and the three best adapters of stage 2.

    python evidence/smollm2/generation_study.py results/smollm2/adapters-e2e.jsonl.xz GENERATION.yaml

The best are those with the lowest validation loss, averaged over the seeds; the test data have no
part in the choice. Each adapter, and LoRA, keeps the learning rate that stage 2 chose for it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from qpeft.errors import InputError
from qpeft.files import write_text
from qpeft_lab.compare.summary import Result, Summary, load

FRAME = Path(__file__).parent / "studies" / "generation.yaml"
ALWAYS = ("none", "lora_r8")  # these are in the study without a choice
CHOSEN = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path)
    parser.add_argument("study", type=Path)
    asked = parser.parse_args()
    study = yaml.safe_load(FRAME.read_text(encoding="utf-8"))
    study["methods"] = methods_of(load(asked.rows))
    write_text(asked.study, yaml.safe_dump(study, sort_keys=False))


def methods_of(stage_2: Summary) -> list[dict[str, Any]]:
    """Those of the study. Raises InputError if stage 2 has not ended: a choice among a part of the
    adapters would depend on when it was stopped.
    """
    missing = [result.key for result in stage_2.results if result.lost]
    if missing:
        raise InputError(f"stage 2 has not ended, rows are missing of {', '.join(missing)}")
    adapters = [result for result in stage_2.results if result.key not in ALWAYS]
    best = sorted(adapters, key=validation_loss)[:CHOSEN]
    return [entry(result) for result in [*map(stage_2.__getitem__, ALWAYS), *best]]


def validation_loss(result: Result) -> float:
    """In nats per token, averaged over the seeds."""
    loss = result.mean("valid_loss")
    assert loss is not None, result.key  # the stage has ended
    return loss


def entry(result: Result) -> dict[str, Any]:
    """The method of a study with the learning rate that was chosen."""
    method = result.method
    fields: dict[str, Any] = {"key": method.key, "label": result.label, "method": method.method}
    if method.settings:
        fields["settings"] = method.settings
    return fields if result.lr is None else {**fields, "lr": result.lr}


if __name__ == "__main__":
    main()
