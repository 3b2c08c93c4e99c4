"""Upload of an exported adapter to a model repository of the Hugging Face Hub.

repository/  adapter_config.json, adapter_model.safetensors   the exported adapter: PEFT loads it
             README.md                                        with the scores of its run
             compact/                                         the compact checkpoint, for qpeft
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import HFValidationError, validate_repo_id

from qpeft.core.checkpoint import CONFIG, WEIGHTS
from qpeft.core.model_card import users_card
from qpeft.errors import ConfigError, QpeftError
from qpeft.files import read_json
from qpeft_lab.training.classifier import RECORD as TASK
from qpeft_lab.training.run_folder import RunFolder

COMPACT = "compact"


def check_repository(name: str) -> None:
    """Raise ConfigError if `name` is no name of a repository."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(
            f"--push-to-hub takes the name of a model repository, such as me/my-adapter: {error}"
        ) from error


def upload(exported: Path, compact: Path | None, run: RunFolder | None, repository: str) -> str:
    """Upload an export, with the compact checkpoint and the scores of its run; the repository's
    address. It is created if there is none.

    A card that a user wrote is uploaded as it is. Raises QpeftError if the upload fails.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(shutil.copytree(exported, Path(name, "upload")))
        if compact is not None:
            (folder / COMPACT).mkdir()
            for file in (CONFIG, WEIGHTS, "README.md", TASK):
                if (compact / file).is_file():
                    shutil.copy(compact / file, folder / COMPACT)
            if users_card(folder) is None:
                card = folder / "README.md"
                sections = [card.read_text(encoding="utf-8"), *_scores(run), *_compact(compact)]
                card.write_text("\n".join(sections), encoding="utf-8")
        try:
            url = HfApi().create_repo(repository, exist_ok=True)
            HfApi().upload_folder(
                folder_path=folder,
                repo_id=url.repo_id,
                commit_message="Upload of an adapter by qpeft",
            )
        except (OSError, RuntimeError, ValueError) as error:  # of the hub's client and connection
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise QpeftError(
                f"the adapter is exported, but its upload to {repository} failed: {reason}. Log in"
                " with hf auth login, or set HF_TOKEN"
            ) from error
    return str(url)


def _scores(run: RunFolder | None) -> list[str]:
    """The section with the scores before and after training, of a finished run."""
    result = run and run.read_result()
    if not result:
        return []
    before, after = result.before.described(), result.after.described()
    rows = [f"| {title} | {value} | {after.get(title, '')} |" for title, value in before.items()]
    trained = (
        f"Method {result.method}, {result.trainable:,} trainable parameters,"
        f" {result.steps:,} steps.\n"
    )
    table = ["| validation data | before training | after |", "| --- | ---: | ---: |", *rows]
    return ["## Scores\n", trained, *table, ""]


def _compact(compact: Path) -> list[str]:
    frames = read_json(compact / CONFIG).get("frames_sha256")
    needs_file = (
        f" It needs the frame file with the SHA-256 `{frames}`, which is not a part of it."
        if frames
        else ""
    )
    text = f"`{COMPACT}/` has the parameters of the generator, for `qpeft.load`.{needs_file}\n"
    return ["## Compact checkpoint\n", text]
