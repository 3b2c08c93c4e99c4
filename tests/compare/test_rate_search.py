"""A grid of learning rates extends itself while its best is at an edge."""

import math

import planted_cells as cells
import pytest

from qpeft_lab.compare import runner
from qpeft_lab.compare.rate_search import search_rates
from qpeft_lab.compare.runner import run
from qpeft_lab.compare.study import rates_of
from qpeft_lab.compare.summary import load

GRID = [3e-4, 1e-3, 3e-3, 1e-2]


def loss_around(minimum, diverges_from=math.inf):
    """Convex in the logarithm of the learning rate; infinite where training diverges."""
    return lambda rate: math.inf if rate >= diverges_from else math.log(rate / minimum) ** 2


@pytest.mark.parametrize(
    "loss_of, rates, best, edge",
    [
        (loss_around(1e-3), [3e-4, 1e-3, 3e-3, 1e-2], 1e-3, None),
        (loss_around(1.2e-2), [3e-4, 1e-3, 3e-3, 1e-2, 0.03333], 1e-2, None),
        (loss_around(9), [3e-4, 1e-3, 3e-3, 1e-2, 0.03333, 0.1111], 0.1111, "high"),
        (
            loss_around(9, diverges_from=0.05),
            [3e-4, 1e-3, 3e-3, 1e-2, 0.03333, 0.1111],
            0.03333,
            None,
        ),
        (loss_around(1e-9), [2.7e-5, 9e-5, 3e-4, 1e-3, 3e-3, 1e-2], 2.7e-5, "low"),
        (lambda rate: math.inf, [2.7e-5, 9e-5, 3e-4, 1e-3, 3e-3, 1e-2], None, "low"),  # all diverge
        (loss_around(1e-3, diverges_from=1e-4), [2.7e-5, 9e-5, 3e-4, 1e-3, 3e-3, 1e-2], 9e-5, None),
        (
            lambda rate: 5.0,
            [2.7e-5, 9e-5, 3e-4, 1e-3, 3e-3, 1e-2],
            2.7e-5,
            "low",
        ),  # the lowest of equal ones
        (
            lambda rate: 5.0 if rate > 1e-2 else 6 - rate,
            [3e-4, 1e-3, 3e-3, 1e-2, 0.03333, 0.1111],
            0.03333,
            None,
        ),
        (
            lambda rate: None if rate == 1e-2 else rate,
            [3e-4, 1e-3, 3e-3, 1e-2],
            3e-4,
            "low",
        ),  # a trial failed
        (
            lambda rate: None if rate > 1e-2 else 1 / rate,
            [3e-4, 1e-3, 3e-3, 1e-2, 0.03333],
            1e-2,
            "high",
        ),
    ],
)
def test_rates_best_and_edge_of_a_search(loss_of, rates, best, edge):
    search = search_rates(GRID, loss_of)
    assert search.rates == rates
    assert search.best == best
    assert search.edge == edge


def test_one_learning_rate_is_no_search():
    search = search_rates([1e-3], loss_around(1.0))
    assert search.rates == [1e-3]
    assert search.edge is None


@pytest.mark.xdist_group("comparison")
def test_extended_trials_have_rows_and_are_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "write_outputs", lambda folder: None)
    whole = cells.PlantedPlan(tmp_path / "whole", ("lora", "high", "low"))
    run(whole, run_cell=cells.run_convex)
    rows = cells.timeless_rows(whole.folder)
    summary = load(whole.folder)
    tried = {
        "lora": ([0.1, 0.2, 0.4], 0.2, None),
        "high": ([0.1, 0.2, 0.4, 0.8, 1.6], 1.6, "high"),
        "low": ([0.025, 0.05, 0.1, 0.2, 0.4], 0.025, "low"),
    }
    for method, (rates, chosen, edge) in tried.items():
        of_method = [row for row in rows.values() if row["method"] == method]
        assert {row["lr"] for row in of_method if row["role"] == "tuning"} == set(rates)
        assert {row["lr"] for row in of_method if row["role"] != "tuning"} == {chosen}
        assert summary[method].lr_at_edge == edge

    lines = (whole.folder / "rows.jsonl").read_text().splitlines(keepends=True)
    for n in (10, 12):  # killed in both rounds of extensions
        killed = cells.PlantedPlan(tmp_path / f"killed-{n}", ("lora", "high", "low"))
        killed.claim()
        (killed.folder / "rows.jsonl").write_text("".join(lines[:n]))
        run(killed, run_cell=cells.run_convex)
        assert cells.timeless_rows(killed.folder) == rows


def test_a_rate_that_is_not_searched_is_the_one_of_the_file():
    assert rates_of(0.00123456, [1.0]) == [0.00123456]
    assert rates_of(0.00123456, [1.0, 3.0]) == [0.00123, 0.0037]  # docs/comparison.md: three digits
