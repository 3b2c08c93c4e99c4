"""Every Python block and every `qpeft` command of the pages runs and prints what the page shows.

The blocks of a page run in order in one folder.
"""

import io
from contextlib import redirect_stdout

import pytest
from snippets import NOT_COMPARED, PAGES, cheap, commands, python, shows, snippets, why_not_run

LANGUAGES = {"text", "yaml", "json", "python", "sh"}  # of these, python and sh are run
RUN = [
    pytest.param(page, id=page.stem, marks=[] if page.stem == "README" else pytest.mark.long)
    for page in PAGES
    if any(snippet.language in ("python", "sh") for snippet in snippets(page))
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_blocks_have_known_languages(page):
    languages = {snippet.language for snippet in snippets(page)}
    assert {language for language in languages if not language.startswith("{")} <= LANGUAGES


@pytest.mark.filterwarnings("ignore")  # those of the examples
@pytest.mark.parametrize("page", RUN)
def test_page_runs(page, enter_folder_for, qpeft_cli, request):
    """The README in one process; the other pages, which are long, start those that a reader has."""
    for name in ("inline", "verified_here") if page.stem == "README" else ():
        request.getfixturevalue(name)
    folder = enter_folder_for(page)
    namespace: dict[str, object] = {}
    for snippet in snippets(page):
        printed = None
        if snippet.language == "python" and why_not_run(snippet.text) is None:
            with redirect_stdout(io.StringIO()) as output:
                exec(compile(python(snippet.text, folder), page.name, "exec"), namespace)
            printed = output.getvalue()
        elif snippet.language == "sh":
            outputs = [run(line, qpeft_cli) for line in commands(snippet)]
            printed = next(filter(None, reversed(outputs)), None)
        if snippet.shows is not None and printed is not None:
            assert shows(snippet.shows, printed), (
                f"the page shows\n{snippet.shows}\nprinted:\n{printed}"
            )


def run(line, qpeft_cli):
    """The output of the command; None if it is not run or its output is not compared."""
    line = line.replace("make demo", "qpeft demo")
    if why_not_run(line) is not None:
        return None

    assert line.startswith("qpeft "), f"not a qpeft command and not in NOT_RUN: {line}"

    done = qpeft_cli(*cheap(line))
    assert done.exit_code == 0, f"{line}\n{done.output}"

    return None if line.startswith(NOT_COMPARED) else done.output
