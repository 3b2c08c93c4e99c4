"""Every block of Python and every `qpeft` line of the pages runs, and prints what its page shows.

A page is read from top to bottom in one folder, as its reader would. `testcode` blocks are left to Sphinx's doctest.
"""

import pytest
from snippets import NOT_COMPARED, PAGES, cheap, commands, python, shows, snippets, why_not_run

# languages that are not to be run, and the two that are
LANGUAGES = {"text", "yaml", "json", "python", "sh"}
RUN = [page for page in PAGES if any(snippet.language in ("python", "sh") for snippet in snippets(page))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_says_what_it_is(page):
    """Or it would escape the test below."""
    languages = {snippet.language for snippet in snippets(page)}
    assert {language for language in languages if not language.startswith("{")} <= LANGUAGES


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # a reader's screen, not ours
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_page_runs(page, reader, qpeft_cli):
    folder = reader(page)
    namespace: dict[str, object] = {}
    for snippet in snippets(page):
        if snippet.language == "python" and why_not_run(snippet.text) is None:
            exec(compile(python(snippet.text, folder), page.name, "exec"), namespace)
        elif snippet.language == "sh":
            printed = [run(line, qpeft_cli) for line in commands(snippet)]
            if snippet.shows is not None and printed[-1] is not None:
                assert shows(snippet.shows, printed[-1]), f"the page shows\n{snippet.shows}\nprinted is\n{printed[-1]}"


def run(line, qpeft_cli):
    """What the line prints; None where it is not run or not compared, for a reason."""
    if why_not_run(line) is not None:
        return None
    assert line.startswith("qpeft "), f"neither a qpeft command nor in the list of what is not run: {line}"
    done = qpeft_cli(cheap(line))
    assert done.exit_code == 0, f"{line}\n{done.output}"
    return None if line.startswith(NOT_COMPARED) else done.output
