"""The pages and the README say what the code does: names, messages, command lines."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def command_lines():
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip().startswith("qpeft "):
                    yield pytest.param(line.strip(), id=f"{page.stem}: {line.strip()}")


@pytest.mark.parametrize("line", list(command_lines()))
def test_every_command_line_is_understood(line):
    """Options and values are parsed; nothing runs."""
    import typer

    from qpeft.cli.app import build

    group = typer.main.get_command(build())
    name, *arguments = shlex.split(line, comments=True)[1:]
    command = group.get_command(None, name)
    assert command is not None, name
    command.make_context(name, arguments)


def test_the_readme_shows_the_demo_as_it_prints():
    """The form alone, made of the README's own table: its figures are those of one machine."""
    from rich.console import Console

    from qpeft.cli.demo import _show
    from qpeft.demo.run import PROMPT, Demo

    shown = PAGES[0].read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
    runs = {
        name: {
            "trainable": 40_960,
            "deployed": 40_960,
            "stored_bytes": 99_900,
            "seconds_per_step": 0.55,
            "before": {"perplexity": 148.4},
            "after": {"perplexity": 99.1, "n_tokens": 8_128},
            "exported": f"demo-run/{name}/exported",
        }
        for name in ("lora", "qpa", "quantum_peft")
    }
    load = shown[shown.index("from peft") :].split("\n\n")[0]
    samples = dict.fromkeys(("base", *runs), "SAMPLE")
    demo = Demo({"methods": list(runs), "steps": 70}, "", runs, samples, load)
    console = Console(width=80, highlight=False, markup=False, color_system=None)
    with console.capture() as captured:
        _show(console, demo)
    assert form(shown, PROMPT) == form(captured.get(), PROMPT)


def form(text, prompt):
    """The lines without figures, samples, and blanks that only fill."""
    lines = [re.sub(r"[\d.,]+( [KM]?B)?", "#", " ".join(line.split())) for line in text.splitlines()]
    kept, in_sample = [], False
    for line in filter(None, lines):
        in_sample = (in_sample or line == prompt.splitlines()[0]) and not line.startswith(("After, ", "Exported "))
        if not in_sample:
            kept.append(line)
    return kept


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), f"{page.name} links to {target}"
