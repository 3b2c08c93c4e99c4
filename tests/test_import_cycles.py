"""No folder of the library imports itself through others, whether at its top or inside a function."""

from collections.abc import Iterator

import grimp
import pytest


def cycles(graph: grimp.ImportGraph) -> list[list[str]]:
    """Groups of modules that import one another, directly or through others, each as one closed path."""
    return [_path(graph, group) for group in _groups(graph)]


def _groups(graph: grimp.ImportGraph) -> Iterator[set[str]]:
    """The strongly connected components of more than one module."""
    left = set(graph.modules)
    while left:
        module = min(left)
        group = graph.find_upstream_modules(module) & graph.find_downstream_modules(module) & left | {module}
        left -= group
        if len(group) > 1:
            yield group


def _path(graph: grimp.ImportGraph, group: set[str]) -> list[str]:
    first = min(group)
    closing = min(graph.find_modules_that_directly_import(first) & group)
    there = graph.find_shortest_chain(first, closing)
    assert there is not None
    return [*there, first]


def test_folders_have_no_import_cycles():
    # imports inside functions count, those under `if TYPE_CHECKING` do not
    graph = grimp.build_graph("qpeft", cache_dir=None, exclude_type_checking_imports=True)
    for folder in ("backends", "circuits", "core", "testing"):
        graph.squash_module(f"qpeft.{folder}")
    for folder in graph.find_children("qpeft.methods"):
        if graph.find_children(folder):
            graph.squash_module(folder)
    found = cycles(graph)
    assert not found, "import cycles:\n" + "\n".join(" -> ".join(path) for path in found)


@pytest.mark.parametrize("source", ["import small.second", "def late():\n    import small.second"])
def test_cycle_is_found_and_named(tmp_path, monkeypatch, source):
    package = tmp_path / "small"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "first.py").write_text(source)
    (package / "second.py").write_text("from small import third")
    (package / "third.py").write_text("from small.first import anything")
    monkeypatch.syspath_prepend(tmp_path)
    graph = grimp.build_graph("small", cache_dir=None)
    assert cycles(graph) == [["small.first", "small.second", "small.third", "small.first"]]
