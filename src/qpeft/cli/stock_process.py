"""Logits of an exported folder, from a second Python process in which qpeft cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpeft.errors import VerificationError

if TYPE_CHECKING:
    from torch import Tensor

_SCRIPT = """
import json, sys
sys.modules["qpeft"] = None  # from here on, `import qpeft` raises ModuleNotFoundError
import torch
from safetensors.torch import load_file, save_file
import transformers

asked = json.loads(sys.argv[1])
torch.set_num_threads(asked["threads"])
auto = getattr(transformers, asked["auto_class"])
model = auto.from_pretrained(asked["base"], dtype=torch.float32, trust_remote_code=asked["trusted"], **asked["options"])
name = model.main_input_name
if asked["adapter"]:
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, asked["adapter"])
with torch.no_grad():
    logits = model.eval()(**{name: load_file(asked["inputs"])["inputs"]}).logits
save_file({"logits": logits.contiguous()}, asked["logits"])
"""


def stock_logits(
    base: str,
    adapter: Path | None,
    inputs: Tensor,
    auto_class: str = "AutoModelForCausalLM",
    options: Mapping[str, Any] | None = None,
    *,
    trust_remote_code: bool = False,
) -> Tensor:
    """Logits, float32, of `base` with `adapter`, loaded by transformers and PEFT alone.

    Args:
        base: Hub id or folder of the base model.
        adapter: Exported adapter folder; None for the base alone.
        inputs: Token ids (B, T), int64, or pixels (B, channels, h, w), float32.
        auto_class: The class of transformers that loads the base.
        options: Further arguments of its `from_pretrained`.
        trust_remote_code: Execute Python code of the base model.

    Raises:
        VerificationError: the process could not load them.
    """
    import torch
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as name:
        given, logits = Path(name, "inputs.safetensors"), Path(name, "logits.safetensors")
        save_file({"inputs": inputs}, given)
        asked = {
            "base": base,
            "auto_class": auto_class,
            "options": dict(options or {}),
            "trusted": trust_remote_code,
            "adapter": adapter and str(adapter),
            "inputs": str(given),
            "logits": str(logits),
            "threads": torch.get_num_threads(),
        }
        _run(json.dumps(asked))
        return load_file(logits)["logits"]


def _run(asked: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _SCRIPT, asked]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it ended without a message"])[-1]
        raise VerificationError(f"a process without qpeft could not load the export: {last}")
