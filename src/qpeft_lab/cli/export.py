"""`qpeft export`: from a run or a compact adapter to a folder that loads without qpeft."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpeft.checks import option
from qpeft.errors import ConfigError, QpeftError, VerificationError
from qpeft_lab.cli.adapters import Loading
from qpeft_lab.cli.command import command
from qpeft_lab.cli.console import Answer, line, size, working
from qpeft_lab.cli.options import needed

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

_LANGUAGE_MODEL = "AutoModelForCausalLM"
MERGED_TOLERANCE = 1e-4  # relative to the largest logit; merging rounds the weights

_STOCK = """
import json, sys
sys.modules["qpeft"] = None  # from here on, `import qpeft` raises ModuleNotFoundError
import torch
from safetensors.torch import load_file, save_file
import transformers

asked = json.loads(sys.argv[1])
torch.set_num_threads(asked["threads"])
auto = getattr(transformers, asked["auto_class"])
model = auto.from_pretrained(asked["base"], dtype=torch.float32, trust_remote_code=asked["trusted"], **asked["options"])
if asked["adapter"]:
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, asked["adapter"])
with torch.no_grad():
    logits = model.eval()(**load_file(asked["inputs"])).logits
save_file({"logits": logits.contiguous()}, asked["logits"])
"""


@command
def export(
    *,
    source: Path = needed("Run folder or compact adapter folder.", metavar="RUN|ADAPTER", argument=True),
    out: Path = needed("Folder to write.", metavar="DIR"),
    merge: bool = option(False, "Write the whole model with the adapter merged into its weights."),
    untie: bool = option(
        False, "With --merge: give the output head its own copy of a weight that it shares with the embedding."
    ),
    push_to_hub: str | None = option(
        None, "Then upload the folder to this model repository of the Hugging Face Hub.", metavar="REPO"
    ),
    loading: Loading,
) -> Answer:
    """Export an adapter in PEFT's own format and verify it in a process that cannot import qpeft.

    The export must give the logits of the compact adapter: to 1e-6 in float32, or to 8e-6 of the largest logit where
    SoRA's zero ranks are removed, or to 1e-4 of it where the adapter is merged. Otherwise nothing is written. An upload
    uses the token of `hf auth login`.

    Examples:

      qpeft export run --out my-adapter
      qpeft export run --out my-model --merge
      qpeft export run --out my-adapter --push-to-hub me/my-adapter
    """
    from qpeft.core.export import export_folder
    from qpeft.files import folder_to_replace
    from qpeft_lab.files import output_folder

    if untie and not merge:
        raise ConfigError("--untie changes the base model and needs --merge; add --merge or leave out --untie")
    output_folder(out.parent)
    target = folder_to_replace(out, ()) if merge else export_folder(out)
    folder = loading.find(source)
    base_name = loading.base(folder)
    with working("Exporting and verifying in a process without qpeft") as status:
        data = _written(base_name, folder, target, merge, untie, loading.trust_remote_code)
        data |= {"path": str(out), "base": base_name}
        if push_to_hub is not None:
            status.update("Uploading")
            data["url"] = _upload(out, push_to_hub)
    return Answer(data, lambda console: _show(console, data))


def _upload(folder: Path, repository: str) -> str:
    """The address of the repository, which is created if there is none."""
    from huggingface_hub import HfApi

    try:
        url = HfApi().create_repo(repository, exist_ok=True)
        HfApi().upload_folder(folder_path=folder, repo_id=url.repo_id, commit_message="Upload of an adapter by qpeft")
    except (OSError, RuntimeError, ValueError) as error:  # those of the hub's client and of its connection
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise QpeftError(f"{folder} is exported, but its upload to {repository} failed: {reason}") from error
    return str(url)


def _written(base: str, folder: Path, out: Path, merge: bool, untie: bool, trusted: bool) -> dict[str, Any]:
    """Write and verify the export, which replaces `out`; what was written."""
    import torch

    import qpeft
    from qpeft.core.export import probe_inputs, tolerance
    from qpeft.core.model_card import load_lines
    from qpeft.files import replace_folder
    from qpeft_lab.stock_servers import check_export
    from qpeft_lab.training.classifier import how_to_load, load_base, read_record
    from qpeft_lab.training.outputs import weight_bytes
    from qpeft_lab.training.tasks import load_processor

    record, how, place = read_record(folder), how_to_load(folder), str(out.resolve())
    model = load_base(base, record, trusted)
    model_type, live = model.config.model_type, qpeft.load(qpeft.untie_lm_head(model) if untie else model, folder)
    inputs = probe_inputs(live)
    with torch.no_grad():
        logits = live.eval()(**inputs).logits
    with replace_folder(out) as target:
        if merge:
            if not hasattr(live, "merge_and_unload"):
                raise ConfigError("this kind of adapter cannot be merged into the base; use it with PEFT as it is")
            live.merge_and_unload().save_pretrained(target)  # type: ignore[operator]
            load_processor(base, record.task if record else "causal-lm", trusted).save_pretrained(str(target))
            auto_class, allowed = how.get("auto_class", _LANGUAGE_MODEL), MERGED_TOLERANCE * max(1.0, _largest(logits))
            difference = _largest(logits - stock_logits(str(target), None, inputs, trusted, auto_class))
            load = f"from transformers import {auto_class}\nmodel = {auto_class}.from_pretrained({place!r})"
            found = {"n_bytes": weight_bytes(target), "load": load}
        else:
            report = qpeft.export(live, target, probe=inputs)
            if record is not None:
                record.write(target)
            allowed = tolerance(logits, same_shapes=report.ranks is None)
            difference = _largest(logits - stock_logits(base, target, inputs, trusted, **how))
            servers = {"vLLM": check_export(target, model_type)}
            load = load_lines(base, place, None, **how)
            found = {**asdict(report), "servers": servers, "load": load}
        if not difference <= allowed:
            raise VerificationError(
                f"without qpeft the logits differ by {difference:.3g}, more than {allowed:.1g}; nothing was written. "
                "Check that the base model gives the same logits each time it is loaded"
            )
    return {**found, "max_logit_difference": difference}


def _largest(values: Tensor) -> float:
    return values.abs().max().item()


def stock_logits(
    base: str,
    adapter: Path | None,
    inputs: dict[str, Tensor],
    trust_remote_code: bool = False,
    auto_class: str = _LANGUAGE_MODEL,
    options: dict[str, Any] | None = None,
) -> Tensor:
    """Logits, float32, of `base` with `adapter`, loaded by transformers and PEFT in a process without qpeft.

    `inputs` are tensors by the name of the model's input; `options` are further arguments of the `from_pretrained` of
    `auto_class`. Raises VerificationError if the process could not load them.
    """
    import torch
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as name:
        files = {part: str(Path(name, part)) for part in ("inputs", "logits")}
        save_file(inputs, files["inputs"])
        how = {"auto_class": auto_class, "options": options or {}, "trusted": trust_remote_code}
        what = {"base": base, "adapter": adapter and str(adapter), "threads": torch.get_num_threads()}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _STOCK, json.dumps({**files, **how, **what})],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it ended without a message"])[-1]
            raise VerificationError(f"a process without qpeft could not load the export: {last}")
        return load_file(files["logits"])["logits"]


def _show(console: Console, written: dict[str, Any]) -> None:
    what = f"{written['n_deployed']:,} adapter parameters, " if "n_deployed" in written else ""
    line(console, f"Exported to {written['path']}: {what}{size(written['n_bytes'])}.", "bold")
    differ = f"logits differ by at most {written['max_logit_difference']:.1g}"
    line(console, f"Verified in a process that cannot import qpeft: {differ}.\n")
    for server, answer in written.get("servers", {}).items():
        line(console, f"Loads in {server}: {answer}")
        line(console, "A server that loads the base model loads a merged one: add --merge\n")
    if "url" in written:
        line(console, f"Uploaded to {written['url']}\n")
    console.print("Load it without qpeft:\n")
    line(console, written["load"], "cyan")
