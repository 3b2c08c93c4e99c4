"""The base training's checkpoint: one safetensors file, replaced as a whole, never half-written."""

from pathlib import Path
from typing import TYPE_CHECKING

from qpeft.errors import CheckpointError

if TYPE_CHECKING:
    import torch


def store(path: Path, model: "torch.nn.Module", optimizer: "torch.optim.Optimizer", identity: str, done: int) -> None:
    """Write weights, AdamW's two moments and the number of steps `done` of the training `identity`."""
    from safetensors.torch import save_file

    tensors = {}
    for name, p in model.named_parameters():
        state = optimizer.state[p]
        tensors |= {name: p.detach(), f"{name}/1": state["exp_avg"], f"{name}/2": state["exp_avg_sq"]}
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata={"identity": identity, "done": str(done)})
    partial.replace(path)


def restore(path: Path, model: "torch.nn.Module", optimizer: "torch.optim.Optimizer", identity: str) -> int:
    """Load what `store` wrote into `model` and `optimizer`; return the number of steps done.

    Raises CheckpointError if the file belongs to another training than `identity`.
    """
    import torch
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("identity") != identity:
            raise CheckpointError(
                f"{path} belongs to {metadata.get('identity')}, and this training is {identity}. "
                "Delete the file to begin anew, or go on with the corpus and recipe that made it."
            )
        done = int(metadata["done"])
        for name, p in model.named_parameters():
            p.data.copy_(file.get_tensor(name))
            optimizer.state[p] = {
                "step": torch.tensor(float(done)),
                "exp_avg": file.get_tensor(f"{name}/1"),
                "exp_avg_sq": file.get_tensor(f"{name}/2"),
            }
    return done
