"""A grid of learning rates extends itself while its best is at an edge."""

import math

import planted_cells as cells
import pytest

from qpeft_lab.compare import runner
from qpeft_lab.compare.rate_search import search_rates
from qpeft_lab.compare.runner import run
from qpeft_lab.compare.summary import load

GRID = [3e-4, 1e-3, 3e-3, 1e-2]


def loss_around(minimum, diverges_from=math.inf):
    """Convex in the logarithm of the learning rate; infinite where training diverges."""
    return lambda rate: math.inf if rate >= diverges_from else math.log(rate / minimum) ** 2


@pytest.mark.parametrize(
    ("loss_of", "rates", "best", "edge"),
    [
        (loss_around(1e-3), [3e-4, 1e-3, 3e-3, 1e-2], 1e-3, None),
        (loss_around(1.2e-2), [3e-4, 1e-3, 3e-3, 1e-2, 0.03333], 1e-2, None),
        (loss_around(9), [3e-4, 1e-3, 3e-3, 1e-2, 0.03333, 0.1111], 0.1111, "high"),
        (loss_around(9, diverges_from=0.05), [3e-4, 1e-3, 3e-3, 1e-2, 0.03333, 0.1111], 0.03333, None),
        (loss_around(1e-9), [2.7e-5, 9e-5, 3e-4, 1e-3, 3e-3, 1e-2], 2.7e-5, "low"),
        (lambda rate: math.inf, [2.7e-5, 9e-5, 3e-4, 1e-3, 3e-3, 1e-2], None, "low"),  # all diverge
        (loss_around(1e-3, diverges_from=1e-4), [2.7e-5, 9e-5, 3e-4, 1e-3, 3e-3, 1e-2], 9e-5, None),
        (lambda rate: 5.0, [2.7e-5, 9e-5, 3e-4, 1e-3, 3e-3, 1e-2], 2.7e-5, "low"),  # the lowest of equal ones
        (lambda rate: 5.0 if rate > 1e-2 else 6 - rate, [3e-4, 1e-3, 3e-3, 1e-2, 0.03333, 0.1111], 0.03333, None),
        (lambda rate: None if rate == 1e-2 else rate, [3e-4, 1e-3, 3e-3, 1e-2], 3e-4, "low"),  # a trial failed
        (lambda rate: None if rate > 1e-2 else 1 / rate, [3e-4, 1e-3, 3e-3, 1e-2, 0.03333], 1e-2, "high"),
    ],
)
def test_rates_best_and_edge_of_a_search(loss_of, rates, best, edge):
    search = search_rates(GRID, loss_of)
    assert (search.rates, search.best, search.edge) == (rates, best, edge)


def test_one_learning_rate_is_no_search():
    search = search_rates([1e-3], loss_around(1.0))
    assert (search.rates, search.edge) == ([1e-3], None)


STUDY = """
name: searches
title: Grids that extend themselves
question: Which learning rate?
base: embedded
data: {data}
seeds: [0, 1]
tuning: {{grid: [1.0, 3.0]}}
training: {{steps: 12, batch_size: 2, seq_len: 32}}
methods:
  - {{key: lora, method: lora, settings: {{r: 2}}, lr: 0.01}}
  - {{key: control, method: lora, settings: {{r: 2}}, against: lora, lr: 1.0}}
  - {{key: high, method: lora, settings: {{r: 2}}, lr: 1.0e-5}}
  - {{key: sora@lora, method: sora, at_size_of: lora, settings: {{r: 2}}, lr: 1.0}}
"""


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "text.txt").write_text("The king went into the wood, and the golden bird sang. " * 60)
    study = tmp_path / "searches.yaml"
    study.write_text(STUDY.format(data=tmp_path / "text.txt"))
    return lambda folder: cells.untimed_plan(tmp_path / folder, study)


def rows_by_name(folder):
    rows = cells.timeless_rows(folder)
    return {"/".join(name.split("/")[1::2]): row for name, row in rows.items()}


@pytest.mark.xdist_group("comparison")
def test_extension_of_every_kind_of_method_and_its_resumption(plan, monkeypatch):
    monkeypatch.setattr(runner, "write_outputs", lambda folder: None)
    folder = plan("whole").folder
    run(plan("whole"), run_cell=cells.run_convex)
    rows = rows_by_name(folder)
    summary = load(folder)
    tried = {
        "lora": ([0.003333, 0.01, 0.03], 0.01, None),
        "control": ([0.1111, 0.3333, 1.0, 3.0], 0.1111, "low"),
        "sora@lora": ([0.1111, 0.3333, 1.0, 3.0], 0.1111, "low"),
        "high": ([1e-5, 3e-5, 9e-5, 2.7e-4], 2.7e-4, "high"),
    }
    for method, expected in tried.items():
        for seed in (0, 1):
            assert rows[f"{method}/seed{seed}"]["lr"] == expected[1]
            assert summary[method].lr_at_edge == expected[2]
        assert {name for name in rows if name.startswith(f"{method}/lr")} == {f"{method}/lr{r:g}" for r in expected[0]}

    lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    for n in (9, 13):  # killed in both rounds of extensions
        study = plan(f"killed-{n}")
        study.claim()
        (study.folder / "rows.jsonl").write_text("".join(lines[:n]))
        run(study, run_cell=cells.run_convex)
        assert rows_by_name(study.folder) == rows
