"""The base models that have a name of their own, and the built-in texts.

`base_path()` is a folder for `AutoModelForCausalLM.from_pretrained(path, dtype="float32")` and
`AutoTokenizer.from_pretrained(path)`. "embedded" is part of qpeft; "smollm2" and "minilm" are
pretrained models that `qpeft base NAME` builds from a Python package.
"""

import warnings
from importlib.resources import files
from pathlib import Path

from qpeft.errors import BaseModelWarning, InputError
from qpeft_lab.demo.packaged import BUILD, PACKAGED, PackagedBase, built_folder

EMBEDDED = "embedded"  # name of the embedded base model in `--model`
_HUB_SECONDS = 5  # for an answer of the hub


def base_path(name: str = EMBEDDED) -> Path:
    """Folder of a named base: the embedded one (GPT-2 architecture, 1.5 million parameters, stored
    as float16), or one that was built.

    Raises InputError, with the command that builds it, if there is none.
    """
    if name == EMBEDDED:
        return Path(str(files(__name__))) / "base"
    folder = built_folder(name)
    if folder is None:
        raise InputError(
            f"the base {name} is not in {BUILD / name}; build it from a Python package"
            f" ({PACKAGED[name].n_bytes / 1e6:.0f} MB) with\n\n  qpeft base {name}"
        )
    return folder


def base_model(name: str) -> str:
    """`name` for transformers: the path of the base if it is the name of one, any other name
    unchanged.

    A base that was not built is replaced by its id on the hub, with a warning, if the hub can be
    reached. Otherwise raises InputError, with the command that builds it.
    """
    if name not in (EMBEDDED, *PACKAGED):
        return name
    if name in PACKAGED and built_folder(name) is None and _is_on_hub(PACKAGED[name]):
        base = PACKAGED[name]
        warnings.warn(
            f"{name} is not built; {base.hub_id} of the hub is used instead. It is not the same:"
            f" {name} is {base.about}",
            BaseModelWarning,
            stacklevel=1,
        )
        return base.hub_id
    return str(base_path(name))


def _is_on_hub(base: PackagedBase) -> bool:
    """Whether the base can be downloaded from the hub, or has been."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.constants import is_offline_mode

    if isinstance(try_to_load_from_cache(base.hub_id, "config.json"), str):
        return True
    if is_offline_mode():
        return False
    try:
        get_hf_file_metadata(hf_hub_url(base.hub_id, "config.json"), timeout=_HUB_SECONDS)
    except Exception:  # of the network libraries of every version of huggingface_hub
        return False
    return True
