"""`qpeft diagnose`: measurements of a trained adapter and its circuit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from qpeft.checks import option
from qpeft_lab.cli.adapters import Loading
from qpeft_lab.cli.command import command
from qpeft_lab.cli.console import Answer, facts, line, page, working
from qpeft_lab.cli.options import Fields, needed
from qpeft_lab.files import output_file
from qpeft_lab.settings import HIGHEST_SEED

if TYPE_CHECKING:
    from rich.console import Console

PAGE = "diagnose.html"


@command
def diagnose(
    *,
    target: Path = needed("Run folder or adapter folder.", metavar="TARGET", argument=True),
    samples: int = option(
        200,
        "Random circuits for each measurement, and ten times as many pairs of states.",
        at_least=10,
        at_most=10**6,
    ),
    seed: int = option(0, "Seed of the random circuits.", at_least=0, at_most=HIGHEST_SEED),
    loading: Annotated[Loading, Fields(Loading, only=("method", "ansatz", "frames"))],
    html: Path | None = option(None, f"Write a page. Default: {PAGE} in a run folder, otherwise none.", metavar="FILE"),
) -> Answer:
    """Measure whether a circuit is random, redundant and trainable, and whether it moved in training.

    The weights of the base model are not read. Measurements that a wide circuit does not allow are listed as left out.

    Examples:

      qpeft diagnose run
      qpeft diagnose my-adapter --html my-adapter.html
    """
    folder = loading.find(target)
    html = html or (target / PAGE if (target / "config.json").is_file() else None)
    written = None if html is None else output_file(html)
    with working("Measuring") as tell:
        import torch

        from qpeft_lab.diagnose.answers import diagnose as measure

        torch.set_num_threads(1)  # thousands of circuits, each too small for several threads
        diagnosis = measure(folder, samples, seed, tell)
    data = {"target": str(target), "page": html, **diagnosis}

    def show(console: Console) -> None:
        line(console, f"Diagnosis of {target}\n", "bold")
        console.print(facts(diagnosis["facts"].items()))
        for number, finding in enumerate(diagnosis["findings"].values(), 1):
            console.print(f"\n{number}. {finding['question']}", style="bold")
            for sentence in finding["sentences"]:
                console.print(sentence)
            for reason in finding["left_out"]:
                console.print(f"Left out: {reason}.", style="dim")
        if html is not None:
            line(console, f"\npage  {html}")

    if written is not None:
        page(written, show)
    return Answer(data, show)
