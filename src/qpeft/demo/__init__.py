"""The built-in demonstration: an embedded base model, its tokenizer, and the texts to adapt it to.

`corpus` reads the texts, `build_base` made the model; neither is needed to use it: `base_path()` is a folder
for `AutoModelForCausalLM.from_pretrained(path, dtype="float32")` and `AutoTokenizer.from_pretrained(path)`.
"""

from importlib.resources import files
from pathlib import Path

from qpeft.errors import CheckpointError

EMBEDDED = "embedded"  # what the base that comes with qpeft is called

_NEEDED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def base_path() -> Path:
    """Folder of the embedded base (GPT-2 architecture, 1.5 million numbers, stored as float16).

    Raises CheckpointError, naming the missing files, if the installation is incomplete.
    """
    path = Path(str(files(__name__))) / "base"
    if missing := [name for name in _NEEDED if not (path / name).is_file()]:
        raise CheckpointError(
            f"The embedded base at {path} lacks {', '.join(missing)} (needed: {', '.join(_NEEDED)}). "
            "Install qpeft again, or make the base anew: python -m qpeft.demo.build_base --out DIR"
        )
    return path


def base_model(name: str) -> str:
    """`name` as transformers understands it: `embedded` is `base_path()`."""
    return str(base_path()) if name == EMBEDDED else name
