"""The notebooks: as they are committed, and executed as a reader would."""

import ast
import shutil

import nbformat
import pytest
from nbclient import NotebookClient
from snippets import ROOT

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
MARKS = {"real_model": (pytest.mark.real, pytest.mark.long)}
EXECUTED = [
    pytest.param(file, id=file.stem, marks=MARKS.get(file.stem, pytest.mark.long))
    for file in NOTEBOOKS
]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_committed_notebook_was_executed_and_names_no_machine(file):
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert 5 < len(notebook.cells) <= 15

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        ast.parse(cell.source)
        assert cell.execution_count
        assert not any(output.output_type == "error" for output in cell.outputs)
    text = file.read_text(encoding="utf-8")

    assert '"image/png"' in text
    assert not any(f"/{place}/" in text for place in ("tmp", "root", "home", "work"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", EXECUTED)
def test_notebook_runs(file, tmp_path, monkeypatch):
    folder = tmp_path / "examples" / "notebooks"
    folder.mkdir(parents=True)
    shutil.copytree(ROOT / "examples" / "restaurants", folder.parent / "restaurants")
    (folder / "build").symlink_to(ROOT / "build")
    monkeypatch.chdir(folder)
    NotebookClient(nbformat.read(file, as_version=4), timeout=None).execute()
