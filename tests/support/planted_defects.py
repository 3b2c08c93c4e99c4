"""Programs that do not survive kills, for the harness in benchmarks/ to find out:

python planted_defects.py OUT     the names of the defects whose kills went unnoticed, a line each
"""

import shutil
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))


def main() -> None:
    import kills  # first: it sets the environment that libraries read

    out = Path(sys.argv[1])
    words = ["--out", str(out), "--what", "lora", "--kills"]
    kills.main([*words, "0"])  # the unbroken run is sound
    for plant in (_forgets_its_optimizer, _writes_in_place, _keeps_what_was_half_written):
        (out / "kills.jsonl").unlink(missing_ok=True)
        for broken in out.glob("broken-*"):
            shutil.rmtree(broken)
        with pytest.MonkeyPatch.context() as patch:
            plant(patch.setattr)
            patch.setattr(kills, "_draw", lambda draw, took, *_: kills.Moment(change=draw.randint(1, took.changes)))
            if kills.main([*words, "5"]) == 0:
                sys.stdout.write(f"unnoticed: {plant.__name__}\n")


def _forgets_its_optimizer(setattr: Callable) -> None:
    setattr("transformers.Trainer._load_optimizer_and_scheduler", lambda self, checkpoint: None)


def _writes_in_place(setattr: Callable) -> None:
    @contextmanager
    def replace_file(target):
        target.write_text("{")
        for _ in range(20):  # so that kills come while the file is no whole one
            target.open("a").close()
        yield target

    setattr("qpeft.files.replace_file", replace_file)


def _keeps_what_was_half_written(setattr: Callable) -> None:
    setattr("qpeft.training.run_folder.remove_unfinished", lambda folder: None)


if __name__ == "__main__":
    main()
