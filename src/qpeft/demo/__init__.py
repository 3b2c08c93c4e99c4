"""The embedded base model, the built-in texts, and the demo, which adapts the model to a text.

`base_path()` is a folder for `AutoModelForCausalLM.from_pretrained(path, dtype="float32")` and
`AutoTokenizer.from_pretrained(path)`.
"""

from importlib.resources import files
from pathlib import Path

from qpeft.errors import CheckpointError

EMBEDDED = "embedded"  # name of the embedded base model in `--model`

_NEEDED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def base_path() -> Path:
    """Folder of the embedded base (GPT-2 architecture, 1.5 million parameters, stored as float16).

    Raises CheckpointError, which names the missing files, if the installation is incomplete.
    """
    path = Path(str(files(__name__))) / "base"
    if missing := [name for name in _NEEDED if not (path / name).is_file()]:
        raise CheckpointError(
            f"the embedded base at {path} lacks {', '.join(missing)}; reinstall qpeft "
            "(pip install --force-reinstall --no-deps qpeft)"
        )
    return path


def base_model(name: str) -> str:
    """`name` for transformers: the path of the embedded base for "embedded", any other name unchanged."""
    return str(base_path()) if name == EMBEDDED else name
