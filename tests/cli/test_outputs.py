"""Outputs of every command: nothing but a file, or a folder of qpeft, is replaced, and links are followed."""

import os
import stat
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import qpeft
from qpeft.cli.app import build
from qpeft.demo.run import run_demo
from qpeft.errors import ConfigError
from qpeft.files import output_file, output_folder, replace_file, replace_folder, write_text

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
    ("circuits draw", "adapter"),
    ("circuits count", "adapter"),
    ("circuits export", "adapter"),
    ("compare run", "reuse"),
}


def path_options(command, name=""):
    """(command, option) of every option that is a path or looks like an output."""
    if hasattr(command, "commands"):
        for key, inner in command.commands.items():
            yield from path_options(inner, f"{name} {key}".strip())
    for option in command.params:
        is_path = getattr(option, "metavar", None) in ("DIR", "FILE", "PATH") or option.name in ("out", "html", "log")
        if is_path and option.param_type_name == "option":
            yield name, option.name


def test_every_output_option_is_tested():
    found = set(path_options(typer.main.get_command(build())))
    assert found - INPUTS == {tuple(name.split(" --")) for name in COMMANDS}


def run(name, place, adapter, *more):
    arguments = [str(adapter) if word == "ADAPTER" else word for word in COMMANDS[name]]
    return CliRunner().invoke(build(), [*arguments, f"--{name.split(' --')[1]}", str(place), *more])


def a_pipe(place):
    os.mkfifo(place)


def a_socket(place):
    os.mknod(place, stat.S_IFSOCK | 0o600)


def a_device(place):
    try:
        os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root creates devices")


def a_link_to_a_pipe(place):
    os.mkfifo(place.with_name("pipe"))
    place.symlink_to("pipe")


def a_loop(place):
    place.symlink_to(place.name)


SPECIAL = {
    "named pipe": a_pipe,
    "device": a_device,
    "socket": a_socket,
    "named pipe behind a link": a_link_to_a_pipe,
    "loop of links": a_loop,
}
EXPECTED = {"named pipe behind a link": "is a named pipe", "loop of links": "cannot be written: Too many levels"}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", COMMANDS)
def test_command_refuses_an_output_that_is_not_a_file(name, kind, adapter_folder, tmp_path):
    place = tmp_path / OUTPUT.get(name, "output")
    SPECIAL[kind](place)
    before, names = (place.lstat().st_ino, place.lstat().st_mtime_ns), sorted(tmp_path.iterdir())
    result = run(name, place, adapter_folder)
    assert result.exit_code == 2
    assert f"{place} {EXPECTED.get(kind, 'is a ' + kind)}" in result.stderr
    assert (place.lstat().st_ino, place.lstat().st_mtime_ns) == before
    assert sorted(tmp_path.iterdir()) == names


@pytest.mark.parametrize("name", COMMANDS)
def test_command_refuses_an_output_below_a_file(name, adapter_folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    result = run(name, tmp_path / "file" / "deep" / "output", adapter_folder)
    assert result.exit_code == 2
    assert f"{tmp_path / 'file'} is a file" in result.stderr
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", COMMANDS)
def test_command_refuses_a_folder_for_a_file_and_a_file_for_a_folder(name, adapter_folder, tmp_path):
    place = tmp_path / OUTPUT.get(name, "output")
    place.mkdir() if name in FILES else place.write_text("mine")
    result = run(name, place, adapter_folder)
    assert result.exit_code == 2
    assert f"{place} is a {'folder; give a file' if name in FILES else 'file; give a folder'}" in result.stderr


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("name", REPLACED)
def test_command_writes_through_a_link_to_a_file(name, is_there, adapter_folder, tmp_path):
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    target.parent.mkdir()
    if is_there:
        target.write_text("old")
        target.chmod(0o600)
    link.symlink_to(target)
    assert run(name, link, adapter_folder).exit_code == 0
    assert link.is_symlink()
    assert "old" not in target.read_text()
    assert target.stat().st_mode & 0o777 == (0o600 if is_there else 0o644)
    assert list(target.parent.iterdir()) == [target]


def save(model, place):
    qpeft.save(model, place)


def export(model, place):
    qpeft.export(model, place)


def log(model, place):
    qpeft.set_backend(model, shots=8, log=place)


def demo(_model, place):
    run_demo(place, ["lora"], 1, lambda _: None)


@pytest.mark.parametrize("write", [save, export, log, demo], ids=lambda write: write.__name__)
def test_function_refuses_a_named_pipe(write, adapter_folder, base_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    model = qpeft.load(AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32), adapter_folder)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is a named pipe"):
        write(model, tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)


@pytest.mark.parametrize("write", [save, export], ids=lambda write: write.__name__)
def test_folder_is_replaced_through_a_link_and_keeps_its_permissions(write, adapter_folder, base_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    model = qpeft.load(AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32), adapter_folder)
    write(model, tmp_path / "target")
    (tmp_path / "target").chmod(0o700)
    (tmp_path / "link").symlink_to("target")
    write(model, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "link" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o700


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


def test_mount_point_is_refused_as_a_folder_to_replace(monkeypatch, tmp_path):
    from qpeft.core.exported_folder import refuse_others

    monkeypatch.setattr(Path, "is_mount", lambda _self: True)
    with pytest.raises(ConfigError, match="is a mount point"):
        refuse_others(tmp_path, ())


def test_current_folder_is_refused_as_a_folder_to_replace(monkeypatch, tmp_path):
    from qpeft.core.exported_folder import check_free

    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    for name in (".", "", tmp_path / "link"):
        with pytest.raises(ConfigError, match="is the current folder"):
            check_free(Path(name))


def test_folder_to_replace_in_a_folder_without_permission_is_refused(monkeypatch, tmp_path):
    from qpeft.core.exported_folder import refuse_others

    (tmp_path / "target").mkdir()
    monkeypatch.setattr(os, "access", lambda path, _mode: path != tmp_path)  # root may write everywhere
    with pytest.raises(ConfigError, match=f"no permission to write in {tmp_path};"):
        refuse_others(tmp_path / "target", ())


def test_name_that_is_too_long_is_refused(adapter_folder, tmp_path):
    for name in COMMANDS:
        result = run(name, tmp_path / ("n" * 256), adapter_folder)
        assert result.exit_code == 2
        assert "cannot be written: File name too long" in result.stderr.replace("\n", " ")


@pytest.mark.parametrize("make", [output_file, output_folder])
@pytest.mark.parametrize("name", ["new", "folder/new"])
def test_file_system_that_takes_nothing_is_refused_by_the_name_that_was_given(make, name):
    if not Path("/proc").is_dir():
        pytest.skip("no virtual file system here")
    with pytest.raises(ConfigError, match=f"^/proc/{name} cannot be written: "):
        make(Path("/proc") / name)


def test_check_of_an_output_leaves_nothing(tmp_path):
    output_folder(tmp_path / "folder" / "new")
    output_file(tmp_path / "file")
    assert not any(tmp_path.iterdir())


def test_output_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for make in (output_file, output_folder):
        with pytest.raises(ConfigError, match=f"^{tmp_path}/file/a/b cannot be written: {tmp_path}/file is a file"):
            make(tmp_path / "file/a/b")


def test_file_in_a_folder_without_permission_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(ConfigError, match="no permission to write in"):
        output_file(tmp_path / "new")


def test_unfinished_file_of_a_pipe_is_not_begun(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is a named pipe"), replace_file(tmp_path / "pipe"):
        raise AssertionError("the block is entered")
