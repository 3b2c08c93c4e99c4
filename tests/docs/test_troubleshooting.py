"""What can go wrong is explained: by the message itself, or on the page of troubleshooting."""

import ast
import re
from itertools import pairwise

import pytest
from snippets import ROOT

from qpeft import errors

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ERRORS = {
    name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.QpeftError)
}

# A message explains itself if it tells what to do, or what would be right beside what was found.
TO_DO = re.compile(
    r"\b(give|set|name|take|use|pass|call|load|save|run|train|lower|raise|leave|keep|put|merge|export|serve|remove|"
    r"choose|try|wait|free|install|restore|check|say|make|build|write|register|return|start|upgrade|convert|drop|turn|delete|add|begin|exclude|score|diagnose|look|repair)\b",
    re.IGNORECASE,
)
IS_RIGHT = re.compile(
    r"\b(must|needs?|needed|expected|allowed|one of|at least|at most|there (is|are)|known|instead of|wants|it has|"
    r"here are|it holds|is for|are for|belongs? to|on the command line)\b"
)


def messages_on_the_page():
    """Between backquotes in the terms of its definition lists."""
    terms = [above for above, below in pairwise(PAGE.splitlines()) if below.startswith(": ")]
    return [message for term in terms for message in re.findall(r"`([^`]+ [^`]+)`", term)]


def strings(tree):
    """Every string in it, with `...` for what an f-string fills in."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.JoinedStr, ast.Constant)):
            yield from filter(None, [text_of(node)])


def text_of(node):
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "..." for part in node.values)
    if isinstance(node, ast.BinOp):
        return (text_of(node.left) or "...") + (text_of(node.right) or "...")
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


SOURCES = [ast.parse(file.read_text(encoding="utf-8")) for file in sorted((ROOT / "src").rglob("*.py"))]


def raised():
    """The first argument of every error of ours that is raised somewhere, where it is written out there."""
    for node in (node for tree in SOURCES for node in ast.walk(tree)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ERRORS and node.args:
            yield from filter(None, [text_of(node.args[0])])


def test_every_message_on_the_page_is_in_the_code():
    said = {text for tree in SOURCES for text in strings(tree)}
    wanted = [message for message in messages_on_the_page() if not message.startswith("KeyError")]
    assert len(wanted) > 100
    unknown = [message for message in wanted if not any(says(text, message) for text in said)]
    assert not unknown


def says(text, message):
    return any(part in text for part in [message, message.removesuffix("...").rstrip()])


def test_every_message_explains_itself_or_is_on_the_page():
    explained = [re.compile(".*".join(map(re.escape, m.split("...")))) for m in messages_on_the_page()]
    found = set(raised())
    assert len(found) > 300
    whole = [text for text in found if re.search(r"[a-z]{3}", text.replace("got", ""))]  # others are put together there
    bare = [text for text in whole if not (TO_DO.search(text) or IS_RIGHT.search(text))]
    unexplained = [text for text in bare if not any(pattern.search(text) for pattern in explained)]
    assert not unexplained, "add these to docs/troubleshooting.md, or say in them what to do"


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_every_kind_of_error_is_on_the_page_with_its_exit_code(name):
    from qpeft.cli.failures import exit_code

    row = re.search(rf"^\| `{name}` \|.*\| (\d*) ?\|$", PAGE, flags=re.MULTILINE)
    assert row is not None
    assert name == "QpeftError" or int(row[1]) == exit_code(getattr(errors, name)("x"))
