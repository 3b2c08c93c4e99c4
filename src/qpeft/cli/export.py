"""`qpeft export`: from a run or a compact adapter to a folder that loads without qpeft."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qpeft.cli.adapters import (
    AnsatzFile,
    FramesFile,
    MethodFile,
    OptionalModel,
    TrustRemoteCode,
    adapter_config,
    base_of,
    find_adapter,
    use_files,
)
from qpeft.cli.command import command
from qpeft.cli.console import Answer, count, print_code, size, working
from qpeft.cli.stock_process import stock_logits
from qpeft.errors import ConfigError, TiedWeightError, VerificationError

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

ADAPTER_TOLERANCE = 1e-6
MERGED_TOLERANCE = 1e-4  # relative to the largest logit; merging rounds the weights


@command
def export(
    source: Annotated[Path, typer.Argument(metavar="RUN|ADAPTER", help="Run folder or compact adapter folder.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")],
    model: OptionalModel = None,
    method: MethodFile = None,
    ansatz: AnsatzFile = None,
    frames: FramesFile = None,
    merge: Annotated[
        bool,
        typer.Option("--merge", metavar="", help="Write the whole model with the adapter merged into its weights."),
    ] = False,
    untie: Annotated[
        bool,
        typer.Option(
            "--untie",
            metavar="",
            help="With --merge: give the output head its own copy of a weight that it shares with the embedding.",
        ),
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> Answer:
    """Export an adapter in PEFT's own format and verify it in a process that cannot import qpeft.

    The export must give the logits of the compact adapter: to 1e-6 in float32, or to 8e-6 of the largest logit where
    SoRA's zero ranks are removed, or to 1e-4 of it where the adapter is merged. Otherwise nothing is written.

    Examples:

      qpeft export run --out my-adapter
      qpeft export run --out my-model --merge
    """
    from qpeft.core.exported_folder import check_free, refuse_others

    if untie and not merge:
        raise ConfigError("--untie changes the base model and needs --merge; add --merge or leave out --untie")
    target = refuse_others(out, ()) if merge else check_free(out)
    use_files(method, ansatz)
    folder = find_adapter(source, frames)
    base_name = base_of(model, folder)
    with working("Exporting and verifying in a process without qpeft"):
        trusted = trust_remote_code
        written = (
            _merged(base_name, folder, target, untie, trusted)
            if merge
            else _adapter(base_name, folder, target, trusted)
        )
    written["path"] = str(out)
    return Answer(written, lambda console: _show(console, written))


def _adapter(base_name: str, folder: Path, out: Path, trusted: bool) -> dict[str, Any]:
    from peft import PeftType

    import qpeft
    from qpeft.core.adapter_form import form_of
    from qpeft.core.base_model import load_config
    from qpeft.core.checkpoint import check_folder
    from qpeft.core.exported_folder import tolerance
    from qpeft.core.model_card import load_lines
    from qpeft.core.stock_servers import check_servers
    from qpeft.files import replace_folder
    from qpeft.training.tasks.loading import load_base, probe
    from qpeft.training.tasks.record import how_to_load, read_record

    kind = adapter_config(folder)["peft_type"]
    if kind in PeftType.__members__.values():
        check_folder(folder)
        model_type = load_config(base_name, trusted).model_type
        servers = "; ".join(f"in {check.server}: {check}" for check in check_servers(folder, model_type))
        raise ConfigError(
            f"{folder} is a stock {kind} adapter, which plain PEFT loads already; pass --merge to merge it. Loads "
            f"{servers}"
        )
    record, how = read_record(folder), how_to_load(folder)
    live: Any = qpeft.load(load_base(base_name, record, trusted), folder).eval()
    inputs = probe(live.get_base_model(), record)
    with replace_folder(out) as target:
        report = qpeft.export(live, target, probe=_named(live, inputs))
        form: Any = form_of(live)
        with form.pruned("default"):
            logits = _logits(live, inputs)
        allowed = tolerance(logits, same_shapes=False) if form.prunes else ADAPTER_TOLERANCE
        if record is not None:
            record.write(target)
        stock = stock_logits(base_name, target, inputs, **how, trust_remote_code=trusted)
        difference = _check(logits, stock, allowed)
    load = load_lines(base_name, str(out.resolve()), needs_qpeft=False, **how)
    written = {"path": str(out), "base": base_name, "max_logit_difference": difference, "load": load}
    return {**report.to_dict(), **written}


def _merged(base_name: str, folder: Path, out: Path, untie: bool, trusted: bool) -> dict[str, Any]:
    import qpeft
    from qpeft.files import replace_folder
    from qpeft.training.tasks.loading import load_base, probe, save_processor
    from qpeft.training.tasks.record import read_record

    record = read_record(folder)
    auto_class = "AutoModelForCausalLM" if record is None else record.auto_class
    base = load_base(base_name, record, trusted)
    live: Any = qpeft.load(qpeft.untie_lm_head(base) if untie else base, folder).eval()
    _check_mergeable(live)
    inputs = probe(live.get_base_model(), record)
    logits = _logits(live, inputs)
    with replace_folder(out) as target:
        live.merge_and_unload().save_pretrained(target)
        save_processor(base_name, record, target, trusted)
        tolerance = MERGED_TOLERANCE * max(1.0, logits.abs().max().item())
        stock = stock_logits(str(target), None, inputs, auto_class, trust_remote_code=trusted)
        difference = _check(logits, stock, tolerance)
        n_bytes = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    place = repr(str(out.resolve()))
    load = f"from transformers import {auto_class}\nmodel = {auto_class}.from_pretrained({place})"
    return {"path": str(out), "n_bytes": n_bytes, "max_logit_difference": difference, "load": load}


def _check_mergeable(live: Any) -> None:
    """Refuse a tied target: PEFT only warns, and the merge would change the input embedding too."""
    from qpeft.core.tied_weights import check_not_tied

    names = getattr(live.base_model, "targeted_module_names", None)
    if not names:
        raise ConfigError("this kind of adapter cannot be merged into the base; use it with PEFT as it is")
    try:
        check_not_tied(live.base_model.model, names)
    except TiedWeightError as error:
        raise TiedWeightError(f"{error}; on the command line: --untie") from error


def _named(live: Any, inputs: Tensor) -> dict[str, Tensor]:
    return {live.get_base_model().main_input_name: inputs}


def _logits(live: Any, inputs: Tensor) -> Tensor:
    import torch

    with torch.no_grad():
        return live(**_named(live, inputs)).logits


def _check(expected: Tensor, stock: Tensor, tolerance: float) -> float:
    difference = (expected - stock).abs().max().item()
    if not difference <= tolerance:
        raise VerificationError(
            f"without qpeft the logits differ by {difference:.3g}, more than {tolerance:.1g}; nothing was written. "
            "Check that the base model gives the same logits each time it is loaded"
        )
    return difference


def _show(console: Console, written: dict[str, Any]) -> None:
    n_parameters = written.get("n_generated", written.get("n_deployed"))
    what = f"{count(n_parameters)} adapter parameters, " if n_parameters else ""
    console.print(f"Exported to {written['path']}: {what}{size(written['n_bytes'])}.", style="bold", soft_wrap=True)
    console.print(
        "Verified in a process that cannot import qpeft: "
        f"logits differ by at most {written['max_logit_difference']:.1g}.\n",
        soft_wrap=True,
    )
    for server, answer in written.get("servers", {}).items():
        console.print(f"Loads in {server}: {answer}", soft_wrap=True)
    if written.get("servers"):
        console.print("A server that loads the base model loads a merged one: add --merge\n", soft_wrap=True)
    console.print("Load it without qpeft:\n")
    print_code(console, written["load"])
