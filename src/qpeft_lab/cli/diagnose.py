"""`qpeft diagnose`: measurements of a trained adapter and its circuit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qpeft.checks import option
from qpeft_lab.cli.adapters import ANSATZ, METHOD, find_adapter, use_files
from qpeft_lab.cli.command import command
from qpeft_lab.cli.console import Answer, facts, line, working
from qpeft_lab.cli.options import needed
from qpeft_lab.files import output_file
from qpeft_lab.settings import HIGHEST_SEED

if TYPE_CHECKING:
    from rich.console import Console

    from qpeft_lab.diagnose.answers import Diagnosis

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
    method: str | None = METHOD,
    ansatz: str | None = ANSATZ,
    html: Path | None = option(None, f"Write a page. Default: {PAGE} in a run folder, otherwise none.", metavar="FILE"),
) -> Answer:
    """Measure whether a circuit is random, redundant and trainable, and whether it moved in training.

    The weights of the base model are not read. Measurements that a wide circuit does not allow are listed as left out.

    Examples:

      qpeft diagnose run
      qpeft diagnose my-adapter --html my-adapter.html
    """
    use_files(method, ansatz)
    if html is not None:
        output_file(html)
    folder = find_adapter(target)
    with working("Measuring") as tell:
        import torch

        from qpeft_lab.diagnose.answers import diagnose as measure
        from qpeft_lab.diagnose.answers import write_page

        torch.set_num_threads(1)  # thousands of circuits, each too small for several threads
        diagnosis = measure(folder, samples, seed, on_question=tell)
    page = html or (target / PAGE if (target / "config.json").is_file() else None)
    if page is not None:
        write_page(diagnosis, page)
    data = {**diagnosis.to_dict(), "target": str(target), "page": page}
    return Answer(data, lambda console: _show(console, diagnosis, target, page))


def _show(console: Console, diagnosis: Diagnosis, target: Path, page: Path | None) -> None:
    line(console, f"Diagnosis of {target}\n", "bold")
    console.print(facts([(name, value, "") for name, value in diagnosis.facts.items()]))
    for number, finding in enumerate(diagnosis.findings, 1):
        console.print(f"\n{number}. {finding.question}", style="bold")
        for sentence in finding.sentences:
            console.print(sentence)
        for reason in finding.left_out:
            console.print(f"Left out: {reason}.", style="dim")
    if page is not None:
        line(console, f"\npage  {page}")
