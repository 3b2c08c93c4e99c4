"""The tiny models of the tests, for tools that need a base on which training takes no time."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from tiny_models import gpt2, llama, save_base

__all__ = ["gpt2", "llama", "save_base"]
