"""The pages agree with the program: command lines, links, quoted results, paths and packages of
ARCHITECTURE.md.
"""

import ast
import re
import shlex

import pytest
from snippets import FENCE, ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [
    *PAGES,
    *(
        ROOT / f"{name}.md"
        for name in ("ARCHITECTURE", "CHANGELOG", "CONTRIBUTING", "results/README")
    ),
]


def command_lines():
    for page in PAGES:
        for block in re.findall(
            r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL
        ):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip().startswith("qpeft "):
                    yield pytest.param(line.strip(), id=f"{page.stem}: {line.strip()}")


@pytest.mark.parametrize("line", list(command_lines()))
def test_command_line_is_valid(line):
    """Options and values are parsed; nothing runs."""
    from qpeft_lab.cli.app import load

    name, *arguments = shlex.split(line, comments=True)[1:]
    load(name).make_context(name, arguments)


def headings(page):
    """The anchors of a page, as GitHub makes them."""
    matches = re.findall(
        r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE
    )
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in matches}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_links_resolve(page):
    for name, anchor in re.findall(
        r"\]\(([\w./-]*)(?:#([\w-]+))?\)", FENCE.sub("", page.read_text(encoding="utf-8"))
    ):
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name} links to {name}"
        assert not anchor or anchor in headings(target), f"{page.name} links to {name}#{anchor}"


# ARCHITECTURE.md

ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
SOURCES = [ROOT / "src" / "qpeft", ROOT / "src" / "qpeft_lab"]
PACKAGES = sorted(path.parent.name for source in SOURCES for path in source.glob("*/__init__.py"))


# paths, and functions in them such as `core/binding.py:Binding.refresh`
NAMED = sorted(set(re.findall(r"`(\w+/[\w/]*(?:\.py)?)(?::([\w.]+))?`", ARCHITECTURE)))


@pytest.mark.parametrize("path, name", NAMED)
def test_path_and_function_exist(path, name):
    packages = (path for source in SOURCES for path in source.iterdir() if path.is_dir())
    folders = [ROOT / "src", ROOT, *SOURCES, *packages]
    places = [folder / path for folder in folders if (folder / path).exists()]

    assert places, f"ARCHITECTURE.md names {path}"

    body = ast.parse(places[0].read_text(encoding="utf-8")).body if name else []
    for part in filter(None, name.split(".")):
        inside = [node for node in body if getattr(node, "name", None) == part]
        assert inside, f"ARCHITECTURE.md names {name} of {path}"
        body = inside[0].body


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_described(package):
    assert re.search(rf"^\| .*`{package}/`.*\|", ARCHITECTURE, flags=re.MULTILINE)
