"""Issue 67, section 2, rows F, M, N, P1, P2 and R: what an attacker, a thread or a kill can do.

Each test is named after the behaviour and ends in its row.
"""

import json
import subprocess
import sys

import pytest

# -- F: a kill while a folder is replaced

# replaces the folder `adapter` again and again, in children that die before their n-th operation on files
KILLS = """
import itertools, json, os, sys
from pathlib import Path
from qpeft import folders
from qpeft.folders import folder_to_replace, repair_folder, replace_folder

root, can_swap = Path(sys.argv[1]), sys.argv[2] == "True"
if not can_swap:
    folders._exchange = lambda *_: False

def write(target, text):
    with replace_folder(target) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "weights").write_text(text)

outcomes = []
for n in itertools.count(1):
    target = root / str(n) / "adapter"
    write(target, "old")
    if not (child := os.fork()):
        left = n
        def die(event, arguments):
            global left
            left -= event.startswith(("os.", "open", "shutil.", "fcntl."))
            if not left:
                os._exit(9)
        sys.addaudithook(die)
        write(target, "new")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    repair_folder(target)
    found = (target / "deep" / "weights").read_text() if target.exists() else "none"
    write(target, "next")
    remains = [path.name for path in target.parent.iterdir() if path != target]
    outcomes.append([code, found, remains])
    if code == 0:
        break
print(json.dumps(outcomes))
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="the system cannot fork")
@pytest.mark.parametrize("can_swap", [True, False])
def test_kill_at_any_step_of_a_replacement_leaves_the_old_or_the_new_folder_f(tmp_path, can_swap):
    command = [sys.executable, "-c", KILLS, tmp_path, str(can_swap)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    outcomes = json.loads(done.stdout)
    kills = [found for code, found, _ in outcomes if code == 9]
    assert len(kills) > 20
    assert {*kills} == {"old", "new"}
    assert kills == sorted(kills, reverse=True)  # the old one up to some step, then the new one
    assert not [remains for _, _, remains in outcomes if remains]


def test_live_process_keeps_its_unfinished_folder_f(tmp_path):
    """Also after a nested replacement, as by `save` in the block of a run."""
    from qpeft.folders import replace_folder

    code = (
        "import sys; from pathlib import Path; from qpeft.folders import replace_folder\n"
        "with replace_folder(Path(sys.argv[1])) as folder: pass"
    )
    target = tmp_path / "adapter"
    with replace_folder(target) as folder:
        with replace_folder(folder) as inner:
            (inner / "weights").write_text("mine")
        subprocess.run([sys.executable, "-c", code, target], check=True)
    assert (target / "weights").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [target]
