"""Changes to the files of a saved adapter."""

import json

from safetensors.torch import load_file, save_file


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def replace_in_config(folder, old, new):
    """Text of the config, also of settings inside settings."""
    path = folder / "adapter_config.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def rewrite(folder, change):
    """Change the tensors, without the hash that would refuse them before the method does."""
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)
    edit_config(folder, weights_sha256=None)
