"""The command `qpeft`, which is part of the laboratory; without it, how to install it."""

import os
import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line of `qpeft_lab`, which ends the process; exit code 2 without the extra
    `lab`.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, by >&- in a shell
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
        # its encoding may lack characters
        getattr(sys, name).reconfigure(errors="backslashreplace")
    if missing := [
        name for name in ("typer", "rich", "pydantic", "pandas") if find_spec(name) is None
    ]:
        sys.stderr.write(f"The command qpeft needs {missing[0]}: pip install 'qpeft[lab]'\n")
        sys.exit(2)
    try:
        from qpeft_lab.heap import restart_with_settings

        restart_with_settings()
        from qpeft_lab.cli.app import build

        build()(prog_name="qpeft")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
