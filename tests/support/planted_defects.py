"""Defects that benchmarks/kills.py must detect:

python planted_defects.py OUT     prints the name of each undetected defect
"""

import shutil
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))


def main() -> None:
    import kills  # first: it sets environment variables that libraries read

    out = Path(sys.argv[1])
    words = ["--out", str(out), "--what", "lora", "--kills"]
    kills.main([*words, "0"])  # without a defect
    for plant in (_does_not_restore_optimizer, _overwrites_in_place, _keeps_unfinished_files):
        (out / "kills.jsonl").unlink(missing_ok=True)
        for broken in out.glob("broken-*"):
            shutil.rmtree(broken)
        with pytest.MonkeyPatch.context() as patch:
            plant(patch.setattr)
            patch.setattr(kills, "_draw", lambda draw, took, _: kills.Moment(change=draw.randint(1, took.changes)))
            if kills.main([*words, "5"]) == 0:
                sys.stdout.write(f"unnoticed: {plant.__name__}\n")


def _does_not_restore_optimizer(setattr: Callable) -> None:
    setattr("transformers.Trainer._load_optimizer_and_scheduler", lambda self, checkpoint: None)


def _overwrites_in_place(setattr: Callable) -> None:
    @contextmanager
    def replace_file(target):
        target.write_text("{")
        for _ in range(20):  # kills occur while the file is incomplete
            target.open("a").close()
        yield target

    setattr("qpeft.files.replace_file", replace_file)


def _keeps_unfinished_files(setattr: Callable) -> None:
    setattr("qpeft_lab.training.run_folder.remove_unfinished", lambda folder: None)


if __name__ == "__main__":
    main()
