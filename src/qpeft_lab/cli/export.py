"""`qpeft export`: from a run or a compact adapter to a folder that loads without qpeft."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpeft.checks import option
from qpeft.errors import ConfigError, VerificationError
from qpeft_lab.base_files import TEMPLATE, own_template
from qpeft_lab.cli.adapters import Loading, run_of
from qpeft_lab.cli.command import command
from qpeft_lab.cli.console import Answer, line, say, size, stderr
from qpeft_lab.cli.options import needed

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

MERGED_TOLERANCE = 1e-4  # relative to the largest logit; merging rounds the weights

_STOCK = """
import sys
sys.modules["qpeft"] = None  # from here on, `import qpeft` raises ModuleNotFoundError
import torch
from safetensors.torch import load_file, save_file

code, inputs, logits, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
exec(code)
with torch.no_grad():
    computed = model.eval()(**load_file(inputs)).logits
save_file({"logits": computed.contiguous()}, logits)
"""


@command
def export(
    *,
    source: Path = needed(
        "Run folder or compact adapter folder.", metavar="RUN|ADAPTER", argument=True
    ),
    out: Path | None = option(None, "Folder to write.", metavar="DIR"),
    gguf: Path | None = option(
        None,
        "File to write for llama.cpp and Ollama, with a Modelfile next to it; with --out or without."
        " Needs the extra gguf.",
        metavar="FILE",
    ),
    merge: bool = option(False, "Write the whole model with the adapter merged into its weights."),
    untie: bool = option(
        False,
        "With --merge: give the output head its own copy of a weight that it shares with the"
        " embedding.",
    ),
    push_to_hub: str | None = option(
        None,
        "Then upload the adapter to this model repository of the Hugging Face Hub, with its compact"
        " checkpoint and a card that has the scores of its run.",
        metavar="REPO",
    ),
    loading: Loading,
) -> Answer:
    """Export an adapter in PEFT's own format and verify it in a process that cannot import qpeft.

    The export must give the logits of the compact adapter: to 1e-6 in float32, or to 8e-6 of the
    largest logit where SoRA's zero ranks are removed or OFT computes a rotation, or to 1e-4 of it
    where the adapter is merged. Otherwise nothing is written. An upload uses the token of
    `hf auth login` or HF_TOKEN. A frame file is named in the card, and not uploaded.

    Examples:

      qpeft export run --out my-adapter
      qpeft export run --out my-model --merge
      qpeft export run --gguf my-adapter.gguf
      qpeft export run --push-to-hub me/my-adapter
    """
    from qpeft.core.export import export_folder
    from qpeft.folders import folder_to_replace
    from qpeft_lab.files import output_file

    if out is None and gguf is None and push_to_hub is None:
        raise ConfigError(
            "nothing to write; give --out DIR, --gguf FILE, --push-to-hub REPO, or several"
        )
    if merge and (out is None or gguf is not None):
        raise ConfigError(
            "--merge writes a whole model into --out DIR, and --gguf the adapter alone; leave out"
            " one of them"
        )
    if untie and not merge:
        raise ConfigError(
            "--untie changes the base model and needs --merge; add --merge or leave out --untie"
        )
    if gguf is not None:
        from qpeft_lab.gguf_lora import refuse_other_file

        gguf = output_file(gguf)
        refuse_other_file(gguf)
        if out is not None and gguf.resolve().is_relative_to(out.resolve()):
            raise ConfigError(
                f"--gguf {gguf} is in the folder --out {out}, which is replaced as a whole; give it"
                " another place"
            )
    if push_to_hub is not None:
        from qpeft_lab.training.hub import check_repository

        check_repository(push_to_hub)
    with ExitStack() as stack:
        if out is None:
            target = Path(stack.enter_context(tempfile.TemporaryDirectory()), "exported")
        else:
            output_file(out.parent, is_folder=True)
            target = folder_to_replace(out, ()) if merge else export_folder(out)
        folder = loading.find(source)
        base_name = loading.base(folder)
        status = stderr().status("Exporting and verifying in a process without qpeft")
        stack.enter_context(status)
        data = _written(base_name, folder, target, merge, untie, gguf, loading)
        if push_to_hub is not None:
            from qpeft_lab.training.hub import upload

            status.update("Uploading")
            compact = None if merge else folder
            data["url"] = upload(target, compact, run_of(folder), push_to_hub)
    if (template := own_template(folder)) is not None and not merge:
        say(
            "Note:",
            f"a server uses the chat template of the base; give it the adapter's, {template}",
        )
    if out is None:
        del data["load"], data["path"]  # of a folder that is removed
    else:
        data["path"] = str(out)
    data["base"] = base_name
    return Answer(data, lambda console: _show(console, data))


def _written(
    base: str,
    folder: Path,
    out: Path,
    merge: bool,
    untie: bool,
    gguf: Path | None,
    loading: Loading,
) -> dict[str, Any]:
    """Write and verify the export, which replaces `out`, and the file `gguf`; what was written."""
    import torch
    from peft.tuners.tuners_utils import BaseTuner

    import qpeft
    from qpeft.core.export import probe_inputs, tolerance
    from qpeft.core.generator_holder import holder_of
    from qpeft.core.model_card import keep_card, load_lines
    from qpeft.core.targets import check_not_tied
    from qpeft.folders import replace_folder
    from qpeft_lab.base_model import load_config, warn_of_own_tokenizer
    from qpeft_lab.data.task_types import TASKS
    from qpeft_lab.data.text import read_template
    from qpeft_lab.gguf_lora import check_adapter, check_base, write_gguf
    from qpeft_lab.stock_servers import check_export, stock_settings
    from qpeft_lab.training.classifier import how_to_load, load_base, read_record
    from qpeft_lab.training.outputs import weight_bytes
    from qpeft_lab.training.tasks import load_processor

    record = read_record(folder)
    template = own_template(folder)
    how = how_to_load(folder)
    trusted = loading.trust_remote_code
    if trusted:
        how["options"] = {**how.get("options", {}), "trust_remote_code": True}
    if gguf is not None:
        check_base(load_config(base, trusted))
    model = load_base(base, record, trusted)
    model_type = model.config.model_type
    if untie:
        qpeft.untie_lm_head(model)
    live = qpeft.load(model, folder, frames=loading.frames)
    if gguf is not None:
        check_adapter(stock_settings(live.peft_config["default"]))
    inputs = probe_inputs(live)
    with torch.no_grad():
        logits = live.eval()(**inputs).logits
    with replace_folder(out) as target:
        if merge:
            if not hasattr(live, "merge_and_unload"):
                raise ConfigError(
                    "this kind of adapter cannot be merged into the base; use it with PEFT as it is"
                )
            if isinstance(tuner := live.base_model, BaseTuner):  # a stock one does not ask
                check_not_tied(tuner.model, tuner.targeted_module_names)
            live.merge_and_unload().save_pretrained(target)  # type: ignore[operator]
            task = record.task if record else "causal-lm"
            processor = load_processor(base, task, trusted)
            if not TASKS[task].has_images:
                warn_of_own_tokenizer(folder, processor)
            if template is not None:
                processor.chat_template = read_template(template)
            processor.save_pretrained(str(target))
            written: dict[str, Any] = {"n_bytes": weight_bytes(target)}
            allowed = MERGED_TOLERANCE * max(1.0, _largest(logits))
            auto = how.get("auto_class", "AutoModelForCausalLM")
            trust = ", trust_remote_code=True" if trusted else ""
            load = (
                f"from transformers import {auto}\nmodel ="
                f" {auto}.from_pretrained({str(target)!r}{trust})"
            )
        else:
            report = qpeft.export(live, target, probe=inputs)
            if record is not None:
                record.write(target)
            keep_card(out, target)
            if template is not None:
                shutil.copyfile(template, target / TEMPLATE)
            allowed = tolerance(
                logits, same_shapes=report.ranks is None and holder_of(live) is not None
            )
            written = {**asdict(report), "vllm": check_export(target, model_type)}
            load = load_lines(base, str(target), None, **how)
        difference = _largest(logits - stock_logits(load, inputs))
        if not difference <= allowed:
            raise VerificationError(
                f"without qpeft the logits differ by {difference:.3g}, more than {allowed:.1g};"
                " nothing was written. Check that the base model gives the same logits each time"
                " it is loaded"
            )
        if gguf is not None:
            write_gguf(target, model.config, gguf)
            written["gguf"] = str(gguf)
    load = load.replace(repr(str(target)), repr(str(out.resolve())))
    return {**written, "load": load, "max_logit_difference": difference}


def _largest(values: Tensor) -> float:
    return values.abs().max().item()


def stock_logits(code: str, inputs: dict[str, Tensor]) -> Tensor:
    """Logits, float32, of the `model` that lines of Python load in a process without qpeft.

    `inputs` are tensors by the name of the model's input. Raises VerificationError if the process
    could not load it.
    """
    import torch
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as name:
        files = str(Path(name, "inputs")), str(Path(name, "logits"))
        save_file(inputs, files[0])
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                _STOCK,
                code,
                *files,
                str(torch.get_num_threads()),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it ended without a message"])[-1]
            raise VerificationError(f"a process without qpeft could not load the export: {last}")
        return load_file(files[1])["logits"]


def _show(console: Console, written: dict[str, Any]) -> None:
    what = f"{written['n_deployed']:,} adapter parameters, " if "n_deployed" in written else ""
    places = " and ".join(written[name] for name in ("path", "gguf", "url") if name in written)
    line(console, f"Exported to {places}: {what}{size(written['n_bytes'])}.", "bold")
    differ = f"logits differ by at most {written['max_logit_difference']:.1g}"
    line(console, f"Verified in a process that cannot import qpeft: {differ}.\n")
    if "vllm" in written:
        line(console, f"Loads in vLLM: {written['vllm']}")
        line(console, "A server that loads the base model loads a merged one: add --merge\n")
    if "gguf" in written:
        from qpeft_lab.gguf_lora import modelfile_of

        name = Path(written["gguf"])
        line(console, f"llama.cpp: llama-server --model BASE.gguf --lora {name}")
        line(console, f"Ollama: ollama create NAME -f {modelfile_of(name)}\n")
    if "load" in written:
        console.print("Load it without qpeft:\n")
        line(console, written["load"], "cyan")
