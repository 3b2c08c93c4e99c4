"""Upload of an exported adapter to a model repository of the Hugging Face Hub.

repository/  adapter_config.json, adapter_model.safetensors   the exported adapter: PEFT loads it
             README.md, loss.png                              with the scores of its run
             compact/                                         the compact adapter, for qpeft

A base that was a folder of this machine is named by its id on the hub if `qpeft base` built it, and
by the folder's name otherwise: nobody else has its path.
"""

from __future__ import annotations

import shutil
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, metadata_load, metadata_save
from huggingface_hub.utils import HFValidationError, validate_repo_id

from qpeft.core.checkpoint import CONFIG, RECORD, WEIGHTS
from qpeft.core.model_card import add_sections, users_card
from qpeft.errors import ConfigError, QpeftError
from qpeft.files import read_json, write_json
from qpeft_lab.base_files import TEMPLATE, source_of
from qpeft_lab.training import run_picture
from qpeft_lab.training.classifier import RECORD as TASK
from qpeft_lab.training.run_folder import RunFolder

COMPACT = "compact"
_PICTURE = "loss.png"
_OF_AN_UPLOAD = [f"{COMPACT}/*", RECORD, TASK, TEMPLATE, _PICTURE]  # another may lack them
_MODEL = "model*.safetensors"  # the weights of a whole model
_BASE = "base_model_name_or_path"
_EMBEDDED = Path(__file__).parents[1] / "demo" / "base"


class PublicBase(NamedTuple):
    """What a base model that was a path is called on the hub."""

    name: str
    is_on_hub: bool
    about: str  # sentences of the card


def check_repository(name: str) -> None:
    """Raise ConfigError if `name` is no name of a repository."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(
            f"--push-to-hub takes the name of a model repository, such as me/my-adapter: {error}"
        ) from error


def upload(exported: Path, compact: Path | None, run: RunFolder | None, repository: str) -> str:
    """Upload an export, with the compact adapter and the scores of its run; the repository's
    address. It is created if there is none.

    A card that a user wrote is uploaded as it is. Raises QpeftError if the upload fails, or the
    repository has a whole model and the export is an adapter, or the other way round: transformers
    would load both as one.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(shutil.copytree(exported, Path(name, "upload")))
        if compact is not None:
            # a stock adapter is its own export
            kinds = {read_json(form / CONFIG)["peft_type"] for form in (exported, compact)}
            is_stock = len(kinds) == 1
            if not is_stock:
                (folder / COMPACT).mkdir()
                for file in (CONFIG, WEIGHTS, "README.md", TASK, TEMPLATE):
                    if (compact / file).is_file():
                        shutil.copy(compact / file, folder / COMPACT)
                _name_base(folder / COMPACT)
            about_base = _name_base(folder)
            if users_card(folder) is None:
                of_generator = [] if is_stock else _compact(compact)
                sections = [*about_base, *_scores(run, folder), *of_generator]
                add_sections(folder / "README.md", sections)
        try:
            url = HfApi().create_repo(repository, exist_ok=True)
            _check_kind(folder, HfApi().list_repo_files(url.repo_id), repository)
            HfApi().upload_folder(
                folder_path=folder,
                repo_id=url.repo_id,
                commit_message="Upload of an adapter by qpeft",
                delete_patterns=_OF_AN_UPLOAD,
            )
            # a repository's .gitignore can refuse files without an error
            sent = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
            lost = sorted(sent - {*HfApi().list_repo_files(url.repo_id)})
            if lost:
                raise ValueError(f"the hub did not keep {', '.join(lost)}")
        except QpeftError:
            raise
        except Exception as error:  # any of the hub's client and of its connection
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise QpeftError(
                f"the adapter is exported, but its upload to {repository} failed: {reason}. Log in"
                " with hf auth login, or set HF_TOKEN"
            ) from error
    return str(url)


def _check_kind(folder: Path, present: list[str], repository: str) -> None:
    """Raise QpeftError if the repository has what must not be next to the upload."""
    is_adapter = (folder / CONFIG).is_file()
    has_adapter = CONFIG in present
    has_model = any(fnmatch(name, _MODEL) for name in present)
    conflicts = has_model if is_adapter else has_adapter
    if conflicts:
        ours, theirs = ("adapter", "whole model") if is_adapter else ("whole model", "adapter")
        raise QpeftError(
            f"{repository} has the {theirs} of another upload, which would be loaded together with"
            f" this {ours}; nothing was uploaded. Choose another repository, or delete its files"
        )


def _name_base(folder: Path) -> list[str]:
    """Give the base another name than its path, in the folder's config, record and card; the section
    of a card about it.
    """
    config = read_json(folder / CONFIG)
    path = config.get(_BASE)
    public = _public(path) if path else None
    if public is None:
        return []
    write_json(folder / CONFIG, config | {_BASE: public.name})
    record_file = folder / RECORD
    if record_file.is_file():
        record = read_json(record_file)
        record["adapter"][_BASE] = public.name
        write_json(record_file, record)
    card = folder / "README.md"
    if card.is_file() and users_card(folder) is None:
        text = card.read_text(encoding="utf-8").replace(repr(path), repr(public.name))
        card.write_text(text, encoding="utf-8")
        if public.is_on_hub:
            metadata = metadata_load(card) or {}
            metadata_save(card, {**metadata, "base_model": public.name})
    return [f"## Base model\n\n{public.about}\n"]


def _public(base: str) -> PublicBase | None:
    """What others call the base at this path; None if it is an id on the hub, or not known here."""
    path = Path(base).expanduser()
    if path == _EMBEDDED:
        return PublicBase("embedded", False, "`embedded` is the base model that is part of qpeft.")
    source = source_of(path)
    if "hub_id" in source:
        about = f"{source['about']}: `qpeft base {source['base']}` builds it. The weights of"
        about = f"The adapter was trained on {about} `{source['hub_id']}` may differ."
        return PublicBase(source["hub_id"], True, about)
    if not path.exists() and not path.is_absolute():
        return None
    about = f"`{path.name}` was a folder or file where the adapter was trained. It has no id on the hub."
    return PublicBase(path.name, False, about)


def _scores(run: RunFolder | None, folder: Path) -> list[str]:
    """The section with the scores before and after training, of a finished run; its picture is
    written to the folder.
    """
    result = run and run.read_result()
    if not run or not result:
        return []
    before = result.before.described()
    after = result.after.described()
    rows = [f"| {title} | {value} | {after.get(title, '')} |" for title, value in before.items()]
    trained = (
        f"Method {result.method}, {result.trainable:,} trainable parameters,"
        f" {result.steps:,} steps.\n"
    )
    table = ["| validation data | before training | after |", "| --- | ---: | ---: |", *rows]
    has_picture = run_picture.draw(run, result.after.unit, folder / _PICTURE)
    picture = (
        [f"![The loss on held-out data at each evaluation]({_PICTURE})\n"] if has_picture else []
    )
    return ["## Scores\n", trained, *table, "", *picture]


def _compact(compact: Path) -> list[str]:
    frames = read_json(compact / CONFIG).get("frames_sha256")
    needs_file = (
        f" It needs the frame file with the SHA-256 `{frames}`, which is not a part of it."
        if frames
        else ""
    )
    text = f"`{COMPACT}/` has the parameters of the generator, for `qpeft.load`.{needs_file}\n"
    return ["## Compact adapter\n", text]
