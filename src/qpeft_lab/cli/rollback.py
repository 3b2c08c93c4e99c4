"""`qpeft rollback`: an earlier revision of an adapter in a folder of served adapters."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from qpeft.checks import option
from qpeft.errors import InputError
from qpeft_lab.cli.command import command
from qpeft_lab.cli.console import Answer, line
from qpeft_lab.cli.options import needed

if TYPE_CHECKING:
    from rich.console import Console


@command
def rollback(
    *,
    adapter: Path = needed(
        "Folder of the adapter, such as users/ana.", metavar="FOLDER", argument=True
    ),
    to: str | None = option(
        None, "Earlier revision to restore. Default: list them.", metavar="DIGEST"
    ),
) -> Answer:
    """List the earlier revisions of a served adapter, or make one the present one again.

    A revision is kept when the vLLM resolver has served it. The one that is replaced here is kept as
    well.

    Examples:

      qpeft rollback users/ana
      qpeft rollback users/ana --to 3f2c9a04b1d7
    """
    from qpeft_lab import revisions

    folder = Path(adapter)
    if folder.name in ("", ".."):  # such as `.`, which has no name that revisions could have
        folder = Path(os.path.abspath(folder))  # noqa: PTH100 (does not follow a link)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give that of an adapter, such as users/ana")
    if to is not None:
        revisions.restore(folder, to)
    present = revisions.revision(folder)
    earlier = revisions.kept(folder)
    data = {"adapter": str(folder), "present": present, "earlier": earlier}

    def show(console: Console) -> None:
        line(console, f"{folder} is revision {present}.", "bold")
        for digest in earlier:
            if digest != present:
                line(console, f"  {digest}")

    return Answer(data, show)
