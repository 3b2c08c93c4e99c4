"""The pages and the README agree with the program: command lines, links, quoted results."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

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
def test_command_line_is_valid(line):
    """Options and values are parsed; nothing runs."""
    import typer

    from qpeft.cli.app import build

    group = typer.main.get_command(build())
    name, *arguments = shlex.split(line, comments=True)[1:]
    command = group.get_command(None, name)
    assert command is not None, name
    command.make_context(name, arguments)


def test_readme_shows_the_table_of_the_demo():
    """Only the form: the values are measurements of one machine."""
    from rich.console import Console

    from qpeft.cli.demo import _table
    from qpeft.training.metrics import LanguageModelScore

    shown = PAGES[0].read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
    sizes = {"trainable": 40_960, "deployed": 40_960, "stored_bytes": 99_900, "seconds_per_step": 0.55}
    score = LanguageModelScore(nats=8_128 * 4.6, n_tokens=8_128, n_bytes=20_000)  # a perplexity of 99.5
    run = SimpleNamespace(**sizes, before=score, after=score)
    console = Console(width=80, highlight=False, markup=False, color_system=None)
    with console.capture() as captured:
        console.print(_table(dict.fromkeys(("lora", "qpa", "quantum_peft"), run)))
    assert form(shown) == form(captured.get())


def form(text):
    """The lines without values and without spaces that only align."""
    lines = (re.sub(r"[\d.,]+( [KM]?B)?", "#", " ".join(line.split())) for line in text.splitlines())
    return list(filter(None, lines))


def test_readme_quotes_differences_of_the_result_pages():
    quoted = re.findall(r"[+-]\d\.\d+ \[[^]]+\]", PAGES[0].read_text(encoding="utf-8"))
    results = (ROOT / "docs" / "results" / "controls.md").read_text(encoding="utf-8")
    assert len(quoted) == 6
    assert not [difference for difference in quoted if difference not in results]


def test_links_between_pages_resolve():
    for page in PAGES:
        for target in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), f"{page.name} links to {target}"
