"""`qpeft diagnose`: measurements of a trained adapter and its circuit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from qpeft.checks import option
from qpeft_lab.cli.adapters import Loading
from qpeft_lab.cli.command import command
from qpeft_lab.cli.console import Answer, facts, line, listed, stderr, write_page
from qpeft_lab.cli.options import Fields, needed
from qpeft_lab.files import output_file

if TYPE_CHECKING:
    from rich.console import Console


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
    loading: Annotated[Loading, Fields(Loading, only=("method", "ansatz", "frames"))],
    html: Path | None = option(None, "Write the text as a page as well.", metavar="FILE"),
) -> Answer:
    """Measure whether a circuit is random, redundant and trainable, and whether it moved in
    training.

    The weights of the base model are not read. Measurements that a wide circuit does not allow are
    listed as left out.

    Examples:

      qpeft diagnose run
      qpeft diagnose my-adapter --html my-adapter.html
    """
    folder = loading.find(target)
    page = None if html is None else output_file(html)
    with stderr().status("Measuring"):
        import torch

        from qpeft_lab.diagnose.answers import diagnose as measure

        torch.set_num_threads(1)  # thousands of circuits, each too small for several threads
        answers = measure(folder, samples, frames=loading.frames)

    def show(console: Console) -> None:
        line(console, f"Diagnosis of {target}\n", "bold")
        console.print(facts(listed(answers["facts"])))
        for number, finding in enumerate(answers["findings"].values(), 1):
            console.print(f"\n{number}. {finding['question']}", style="bold")
            console.print(*finding["sentences"], sep="\n")
            if reason := finding["left_out"]:
                console.print(f"Left out: {reason}.", style="dim")

    if page is not None:
        write_page(page, show)
    return Answer({"target": str(target), **answers}, show)
