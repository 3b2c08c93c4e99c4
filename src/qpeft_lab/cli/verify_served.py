"""`qpeft verify-served`: whether a server applies an adapter."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpeft.checks import option
from qpeft.errors import InputError
from qpeft_lab.cli.adapters import Loading
from qpeft_lab.cli.command import WORK_FAILED, command
from qpeft_lab.cli.console import Answer, line, stderr
from qpeft_lab.cli.options import needed

if TYPE_CHECKING:
    from rich.console import Console

_VERDICTS = {
    "adapter": "The server applies the adapter.",
    "base": "The server gives the base model's answers: the adapter is not applied.",
    "neither": "The server gives neither the adapter's answers nor the base model's: another adapter,"
    " another base, or less precision than --dtype.",
    "undecided": "Adapter and base model differ by less than the tolerance, so this cannot be"
    " decided. Serve it in float32 and give --dtype float32, or train it longer.",
}


@command
def verify_served(
    *,
    url: str = needed("Address of the server.", metavar="URL", argument=True),
    adapter: str = needed("Name of the adapter on the server: the model of a request."),
    run: Path | None = option(
        None, "Run folder, or adapter folder (compact or stock). Default: the folder of this name."
    ),
    dtype: str = option(
        "bfloat16",
        "Precision of the server; bfloat16 also for quantized weights in llama.cpp.",
        choices=("float32", "float16", "bfloat16"),
    ),
    timeout: float = option(60.0, "Seconds to wait for an answer.", above=0),
    loading: Loading,
) -> Answer:
    """Ask a server for log-probabilities, and tell whether they are the adapter's or the base's.

    The server is asked for the five most likely next tokens of twelve prompts, at /v1/completions.
    Those of the adapter and of its base model are computed here, in float32. It must be the base
    that is served, with the same weights: --model names it, for example the same GGUF file.

    An answer is the adapter's if the root mean square of the differences is within a tolerance:
    four times the effect of --dtype on the base model or the adapter here, whichever is larger, and
    at least 0.001 nats. The exit code is 1 if it is not the adapter's. The environment variable
    QPEFT_API_KEY may have the server's key.

    Examples:

      qpeft verify-served http://localhost:8000 --adapter ana --run runs/ana
      qpeft verify-served http://localhost:8080 --adapter ana --model base.gguf
    """
    from qpeft_lab import served

    if run is None and not os.path.isdir(adapter):  # noqa: PTH112  False for a name that is too long
        raise InputError("no folder has the name of the adapter; give its folder with --run")
    address = served.completions_url(url)
    folder = loading.find(Path(adapter) if run is None else run)
    base_name = loading.base(folder)
    with stderr().status("Asking the server"):
        answers = [served.ask(address, adapter, prompt, timeout) for prompt in served.PROMPTS]
    with stderr().status("Computing the answers of the adapter and of the base model"):
        result = _compare(answers, base_name, folder, dtype, loading)
    data = {**result._asdict(), "url": address, "adapter": adapter, "base": base_name}
    exit_code = 0 if result.verdict == "adapter" else WORK_FAILED
    return Answer(data, lambda console: _show(console, data), exit_code)


def _compare(
    answers: list[dict[str, float]], base_name: str, folder: Path, dtype: str, loading: Loading
) -> Any:
    import qpeft
    from qpeft_lab import served
    from qpeft_lab.base_model import load_model, load_tokenizer

    tokenizer = load_tokenizer(base_name, loading.trust_remote_code)
    model: Any = load_model(base_name, trust_remote_code=loading.trust_remote_code).eval()
    base = served.local_log_probabilities(model, tokenizer)
    tolerance = served.tolerance_of(model, tokenizer, base, dtype)
    adapted = qpeft.load(model, folder, frames=loading.frames).eval()
    own = served.local_log_probabilities(adapted, tokenizer)
    tolerance = max(tolerance, served.tolerance_of(adapted, tokenizer, own, dtype))
    return served.compare(answers, own, base, tokenizer, tolerance)


def _show(console: Console, data: dict[str, Any]) -> None:
    line(console, _VERDICTS[data["verdict"]], "bold")
    line(
        console,
        f"From the server's {data['n_compared']} log-probabilities, the adapter's differ by"
        f" {data['to_adapter']:.2g} nats and the base's by {data['to_base']:.2g} (root mean square;"
        f" tolerance {data['tolerance']:.2g}).",
    )
