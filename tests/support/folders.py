"""What is stored in the folder of an adapter, changes to its files, and files of JSON lines."""

import json

from safetensors.torch import load_file, save_file


def write_rows(path, rows):
    """A file of JSON lines; returns its path."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_config(folder, **changes):
    edit_json(folder / "adapter_config.json", **changes)


def rewrite(folder, change):
    """Change the tensors, without the hash that would refuse them before the method does."""
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)
    edit_config(folder, weights_sha256=None)


def tensors_of(folder):
    """Those that a plan counts: without hashes."""
    tensors = load_file(folder / "adapter_model.safetensors")
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("fingerprint")}


def bytes_of(folder):
    tensors = tensors_of(folder)
    seal = 8 * any(name.endswith(".values") for name in tensors)  # of Quantum-PEFT's stream
    return sum(tensor.nbytes for tensor in tensors.values()) - seal
