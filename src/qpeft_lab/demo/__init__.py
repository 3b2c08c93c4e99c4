"""The embedded base model and the built-in texts.

`base_path()` is a folder for `AutoModelForCausalLM.from_pretrained(path, dtype="float32")` and
`AutoTokenizer.from_pretrained(path)`.
"""

from importlib.resources import files
from pathlib import Path

EMBEDDED = "embedded"  # name of the embedded base model in `--model`


def base_path() -> Path:
    """Folder of the embedded base (GPT-2 architecture, 1.5 million parameters, stored as float16)."""
    return Path(str(files(__name__))) / "base"


def base_model(name: str) -> str:
    """`name` for transformers: the path of the embedded base for "embedded", any other name
    unchanged.
    """
    return str(base_path()) if name == EMBEDDED else name
