"""The recomputation of the tables shares no code with what it checks."""

import ast
import sys

import pytest
from snippets import ROOT

EVIDENCE = ROOT / "evidence"
INDEPENDENT = {"recompute_tables", "recompute_summary"}
MODULES = sorted(EVIDENCE.rglob("*.py"))


def imported(module):
    """The names of the top-level modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    return names


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_analysis_and_recomputation_import_nothing_of_each_other(module):
    names = imported(module)
    if module.stem in INDEPENDENT:
        assert names <= set(sys.stdlib_module_names) | INDEPENDENT
    else:
        assert not names & INDEPENDENT
