"""The pages and the README say what the code does: names, messages, command lines."""

import ast
import re
import shlex
from pathlib import Path

import pytest

import qpeft

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_api_page_lists_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    public = {f"qpeft.{name}" for name in qpeft.__all__ if not name.startswith("__")}
    public |= {f"qpeft.circuits.{name}" for name in qpeft.circuits.__all__}
    assert public <= set(re.findall(r"qpeft[\w.]+", page))


def test_every_message_on_the_troubleshooting_page_is_in_the_code():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    terms = re.findall(r"^(.*)\n: ", page, flags=re.MULTILINE)
    messages = [message for term in terms for message in re.findall(r"`([^`]+ [^`]+)`", term)]
    assert len(messages) > 40
    said = texts_in_the_code()
    unknown = [m for m in messages if not any(says(text, m) for text in said) and not m.startswith("KeyError")]
    assert not unknown


def texts_in_the_code():
    """Every string of the package, with `...` for what an f-string fills in."""
    found = []
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(p.value if isinstance(p, ast.Constant) else "..." for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def says(text, message):
    return any(part in text for part in [message, message.removesuffix("...").rstrip()])


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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # a user's screen, not ours
def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGES[0].read_text(encoding="utf-8"), flags=re.DOTALL)
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(block, namespace)
    assert (tmp_path / "exported" / "adapter_config.json").is_file()


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
