"""Outputs of every command: nothing but a file, or a folder of qpeft, is replaced, and links are followed."""

import pytest

from qpeft.files import replace_folder, write_text
from qpeft_lab.cli.app import COMMANDS as NAMES
from qpeft_lab.cli.app import load
from qpeft_lab.files import output_file, output_folder

COMMANDS = {
    "demo --out": ["demo"],
    "train --out": ["train", "--model", "embedded", "--data", "numpy-docs"],
    "export --out": ["export", "ADAPTER"],
    "diagnose --html": ["diagnose", "ADAPTER", "--samples", "10"],
    "compare run --out": ["compare", "run", "survey"],
    "circuits export --out": ["circuits", "export", "--n-qubits", "3"],
    "frames --out": ["frames", "--model", "embedded", "--data", "numpy-docs"],
}
REPLACED = ("diagnose --html", "circuits export --out")
FILES = (*REPLACED, "frames --out")  # which refuses a file that exists
OUTPUT = {"frames --out": "output.safetensors"}  # the suffix is added to other names
INPUTS = {
    ("evaluate", "adapter"),
    ("evaluate", "bertscore_model"),
    ("generate", "adapter"),
    ("evaluate", "frames"),
    ("generate", "frames"),
    ("export", "frames"),
    ("diagnose", "frames"),
    ("circuits draw", "adapter"),
    ("circuits count", "adapter"),
    ("circuits export", "adapter"),
    ("train", "config"),
}


def path_options(command, name):
    """(command, option) of every option that is a path or looks like an output."""
    for key, sub in getattr(command, "commands", {}).items():
        yield from path_options(sub, f"{name} {key}")
    for option in command.params:
        is_path = getattr(option, "metavar", None) in ("DIR", "FILE", "PATH") or option.name in ("out", "html", "log")
        if is_path and option.param_type_name == "option":
            yield name, option.name


def test_every_output_option_is_tested():
    found = {option for name in NAMES for option in path_options(load(name), name)}
    assert found - INPUTS == {tuple(name.split(" --")) for name in COMMANDS}


@pytest.fixture
def run(qpeft_cli, adapter_folder):
    def call(name, place):
        arguments = [adapter_folder if word == "ADAPTER" else word for word in COMMANDS[name]]
        return qpeft_cli(*arguments, f"--{name.split(' --')[1]}", place)

    return call


@pytest.mark.parametrize("name", COMMANDS)
def test_command_refuses_an_output_below_a_file(name, run, tmp_path):
    (tmp_path / "file").write_text("mine")
    result = run(name, tmp_path / "file" / "deep" / "output")
    assert result.exit_code == 2
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", COMMANDS)
def test_command_refuses_a_folder_for_a_file_and_a_file_for_a_folder(name, run, tmp_path):
    place = tmp_path / OUTPUT.get(name, "output")
    place.mkdir() if name in FILES else place.write_text("mine")
    result = run(name, place)
    assert result.exit_code == 2
    assert str(place) in result.stderr


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("name", REPLACED)
def test_command_writes_through_a_link_to_a_file(name, is_there, run, tmp_path):
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    target.parent.mkdir()
    if is_there:
        target.write_text("of before")
        target.chmod(0o600)
    link.symlink_to(target)
    assert run(name, link).exit_code == 0
    assert link.is_symlink()
    assert "of before" not in target.read_text()
    assert target.stat().st_mode & 0o777 == (0o600 if is_there else 0o644)
    assert list(target.parent.iterdir()) == [target]


def test_link_inside_a_folder_of_qpeft_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    for name, target in (("file", "mine/file"), ("folder", "mine")):
        (tmp_path / name).symlink_to(target)
    write_text(tmp_path / "file", "new")
    with replace_folder(tmp_path / "folder") as folder:
        (folder / "file").write_text("new")
    assert [(tmp_path / name).is_symlink() for name in ("file", "folder")] == [False, False]
    assert (tmp_path / "mine" / "file").read_text() == "mine"


def test_check_of_an_output_leaves_nothing(tmp_path):
    output_folder(tmp_path / "folder" / "new")
    output_file(tmp_path / "file")
    assert not any(tmp_path.iterdir())
