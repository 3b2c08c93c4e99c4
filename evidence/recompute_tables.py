"""Recompute tables of docs/findings.md from the rows with Python's standard library alone, and
print their cells.

    python evidence/recompute_tables.py equal pairs

A line per cell, row by row. Words, such as the names of adapters, are left out. Nothing here is
imported by what fills the pages, or imports it: which adapters, setups and rates are compared is
decided twice.
"""

from __future__ import annotations

import json
import lzma
import math
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import recompute_summary as oracle

RESULTS = Path(__file__).resolve().parents[1] / "results"
FINAL = "equal-search-final"
EPOCHS = "equal-search-epochs"
ADAPTERS = "quantum-adapters-final"
ENDED = (FINAL, ADAPTERS, EPOCHS, "margins", "elsewhere")
BUDGETS = (128, 400, 1300, 5000)
CIRCUITS = {"qpa", "plain", "framed"}
PAIRS = [
    ("qpa", "uni"),
    ("qpa", "lora"),
    ("framed", "signs"),
    ("framed", "lie"),
    ("framed", "core"),
    ("framed", "uni"),
]
LATER_PAIRS = [("plain", "uni"), ("core", "xs"), ("core", "sb"), ("qpa", "lora")]
TWINS = [
    ("cua", "oft"),
    ("magnitude", "cua"),
    ("quic", "quic_random"),
    ("quanta", "mpo"),
    ("quic", "lora"),
    ("quanta", "lora"),
    ("qchft", "lora"),
]
CIRCUIT = {  # in the study `controls`, and in `controls-80-steps`
    ("paper_none", "qpa_paper"): ("qpa_none", "qpa"),
    ("product", "quantum_peft"): ("product", "quantum_peft"),
    ("qaa_frozen", "qaa"): ("qaa_frozen", "qaa"),
    ("lora@qaa", "qaa"): ("lora@qaa", "qaa"),
}
SHAPES = {  # of the maps of a layer, first that which ends the MLP
    "embedded": [(512, 128), (128, 384), (128, 128), (128, 512)],
    "stories": [(172, 64), (64, 64), (64, 64), (64, 32), (64, 32), (64, 172), (64, 172)],
    "bytes1m": [(512, 128), (128, 384), (128, 128), (128, 512)],
    "llama10m": [(704, 256), *[(256, 256)] * 4, (256, 704), (256, 704)],
}
LAYERS = {"embedded": 5, "stories": 5, "bytes1m": 5, "llama10m": 10}
HEADS = {"embedded": 4096, "stories": 512, "bytes1m": 258, "llama10m": 4096}
# of a map, means over all: Frobenius norm, and root mean square of the entries
NORMS = {
    "embedded": (14.2, 0.0647),
    "stories": (10.1, 0.135),
    "bytes1m": (14.7, 0.0674),
    "llama10m": (9.96, 0.0303),
}
Rows = list[dict[str, Any]]


class Setup(NamedTuple):
    """A study on a base and a text: by method its rows of seeds, sorted by seed, and the trials of
    learning rates.
    """

    base: str
    study: dict[str, Any]
    rows: dict[str, Rows]
    trials: dict[str, Rows]

    def mean(self, key: str, what: str = "test_loss") -> float:
        return statistics.mean(row[what] for row in self.rows[key])


@cache
def setups(name: str) -> dict[str, Setup]:
    """By name; of the runs of the protocol those that have ended."""
    found = {}
    for file in sorted((RESULTS / name).glob("*.xz")):
        study, *lines = map(json.loads, lzma.decompress(file.read_bytes()).splitlines())
        rows: dict[str, Rows] = {method["key"]: [] for method in study["methods"]}
        trials: dict[str, Rows] = {key: [] for key in rows}
        for row in sorted(lines, key=lambda row: row["seed"]):
            if row["role"] == "tuning":
                trials[row["method"]].append(row)
            elif row["status"] == "success" and row["name"].startswith("seed"):
                rows[row["method"]].append(row)
        n_seeds = [len(rows[method["key"]]) for method in study["methods"] if method["rates"]]
        if name not in ENDED or min(n_seeds) == len(study["seeds"]):
            setup = file.name.partition(".")[0]
            found[setup] = Setup(setup.partition("-")[0], study, rows, trials)
    return found


@cache
def searched(setup: str, study: str = "equal-search") -> dict[str, list[tuple[float, int]]]:
    """The configurations that fit, by FAMILY_BUDGET, the best first: gain in validation loss, and
    parameters.
    """
    searches = setups(study)
    search = searches.get(setup) or next(
        one for one in searches.values() if one.base == setup.partition("-")[0]
    )
    found: dict[str, list[tuple[float, int]]] = {}
    for key, trials in search.trials.items():
        name = key.rpartition("_")[0]
        losses = [row["valid_loss"] for row in trials if row["status"] == "success"]
        if losses and trials[0]["params_trainable"] <= int(name.rpartition("_")[2]):
            gain = search.mean("none", "valid_loss") - min(losses)
            found[name] = sorted(
                [*found.get(name, ()), (gain, trials[0]["params_trainable"])], reverse=True
            )
    return found


# -- comparisons with a margin, in per cent of LoRA's gain


class Difference(NamedTuple):
    mean: float
    error: float


def difference(setup: Setup, ours: str, other: str, lora: str) -> Difference:
    """Mean and standard error of the difference of the blocks of each seed."""
    table = []
    for row, other_row in zip(setup.rows[ours], setup.rows[other], strict=True):
        blocks = zip(row["test_losses"], other_row["test_losses"], strict=True)
        table.append([a - b for a, b in blocks])
    seeds = [statistics.mean(row) for row in table]
    blocks = [statistics.mean(column) for column in zip(*table, strict=True)]
    error = math.sqrt(sum(statistics.variance(v) / len(v) for v in (seeds, blocks))) or 1e-12
    per_cent = (setup.mean("none") - setup.mean(lora)) / 100
    return Difference(statistics.mean(seeds) / per_cent, error / per_cent)


def average(differences: Sequence[Difference]) -> Difference:
    variance = sum(each.error**2 for each in differences)
    mean = statistics.mean(each.mean for each in differences)
    return Difference(mean, math.sqrt(variance) / len(differences))


def shown(cells: list[Difference], df: int = 9) -> Iterator[str]:
    """Each with its interval and its verdict among all of them."""
    differ, inside = {}, {}
    for number, (mean, error) in enumerate(cells):
        differ[str(number), ""] = {"p": oracle.tail(abs(mean) / error, df)}
        inside[str(number), ""] = {"p": above((2 - abs(mean)) / error, df)}
    oracle.correct(differ)
    oracle.correct(inside)
    for (mean, error), none, outside in zip(cells, differ.values(), inside.values(), strict=True):
        verdict = "open"
        if none["p_holm"] < 0.05:
            verdict = "better" if mean < 0 else "worse"
        if outside["p_holm"] < 0.05:
            verdict = "equivalent"
        reach = oracle.quantile(df) * error
        yield f"{mean:+.1f} [{mean - reach:+.1f}, {mean + reach:+.1f}], {verdict}"


def above(t: float, df: int) -> float:
    """P(T > t) for Student's T."""
    half = oracle.tail(abs(t), df) / 2
    return half if t > 0 else 1 - half


def equal() -> Iterable[str]:
    cells = []
    for budget, (name, setup) in product(BUDGETS, setups(FINAL).items()):
        searches = searched(name)
        gains = {key: of[0][0] for key, of in searches.items() if of[0][1] <= budget}
        with_circuit = {key for key in gains if key.rpartition("_")[0] in CIRCUITS}
        ours = max(with_circuit, key=gains.__getitem__)
        other = max(gains.keys() - with_circuit, key=gains.__getitem__)
        cells.append(difference(setup, ours, other, "lora_5000"))
    return shown(cells)


def means(
    study: str,
    pairs: list[tuple[str, str]],
    budgets: Sequence[int],
    of_one_size: Sequence[int] = (),
) -> Iterable[str]:
    """The mean for each pair and budget over the setups that searched no more configurations of the
    first; of the pairs with a number in `of_one_size`, those whose sizes differ by at most 10 %.
    """
    cells = []
    for (number, pair), budget in product(enumerate(pairs), budgets):
        ours, other = (f"{family}_{budget}" for family in pair)
        differences = []
        for name, setup in setups(study).items():
            searches = searched(name, study.removesuffix("-final"))
            if ours not in searches or len(searches[ours]) > len(searches.get(other, ())):
                continue
            ratio = searches[ours][0][1] / searches[other][0][1]
            if number not in of_one_size or 0.9 <= ratio <= 1.1:
                differences.append(difference(setup, ours, other, f"lora_{budgets[-1]}"))
        if differences:
            cells.append(average(differences))
    return shown(cells)


def questions() -> list[list[Difference]]:
    """Those of the study `margins`, each in all setups."""
    of_study = setups("margins").values()
    return [
        [difference(setup, method["against"], method["key"], "lora_r8") for setup in of_study]
        for method in next(iter(of_study)).study["methods"]
        if method["against"]
    ]


def margins() -> Iterable[str]:
    return shown([each for question in questions() for each in question])


def pooled() -> Iterable[str]:
    return shown([average(question) for question in questions()])


def epochs() -> Iterable[str]:
    cells = []
    for n, other, budget in product("14", ("uni", "xs", "tokens"), BUDGETS[:3]):
        differences = [
            difference(setup, f"framed_{budget}", f"{other}_{budget}", "lora_1300")
            for name, setup in setups(EPOCHS).items()
            if name.endswith(n)
        ]
        cells.append(average(differences))
    return shown(cells, 4)


# -- shares of a gain


def stored() -> Iterator[str]:
    """The share of LoRA's gain of the best adapter for so many bytes, with its part of a frame
    file.
    """
    finals = setups(FINAL)
    searches = [searched(name) for name in finals]

    def expected(key: str) -> float:
        return statistics.mean(of[key][0][0] / of["lora_5000"][0][0] for of in searches)

    for adapters in (1, 10, 100, 1000):
        for most in (1_000, 2_000, 6_000, 25_000):
            best = None
            for key in sorted(set.intersection(*map(set, searches))):
                sizes = [
                    s.mean(key, "bytes_stored") + frames(s, key) / adapters for s in finals.values()
                ]
                if max(sizes) <= most and (best is None or expected(key) > expected(best)):
                    best = key
            yield f"{100 * share(str(best)):.0f} %"


def share(key: str) -> float:
    """Of LoRA's gain in test loss, averaged over the setups."""
    of = [(s.mean("none"), s.mean(key), s.mean("lora_5000")) for s in setups(FINAL).values()]
    return statistics.mean((base - own) / (base - lora) for base, own, lora in of)


def frames(setup: Setup, key: str) -> int:
    """Bytes of two frames of 16 bits of each adapted map: of (d_out, R) and (d_in, R), R at most as
    large as both.
    """
    settings = next(method["settings"] for method in setup.study["methods"] if method["key"] == key)
    if settings.get("frame") not in ("gradient", "sign"):
        return 0
    shapes = SHAPES[setup.base][: 1 if "down_proj" in settings.get("target_modules", "") else None]
    rank = settings.get("frame_rank", settings["r"])
    return 5 * sum(
        2 * (d_in + d_out) * min(rank, d_in, d_out) for d_in, d_out in shapes
    )  # both bases have 5 layers


def fitting(setup: Setup, budget: int) -> dict[str, float]:
    """The test loss of the designs of `elsewhere` that fit, up to this budget."""
    losses = {}
    for key in setup.rows.keys() - {"none"}:
        if setup.rows[key][0]["params_trainable"] <= limit(key) <= budget:
            losses[key] = setup.mean(key)
    return losses


def limit(key: str) -> int:
    return int(key.split("_")[-2])


def known_share(key: str) -> float:
    return share(key.rpartition("_")[0])


def regrets() -> Iterator[str]:
    for budget, setup in product(BUDGETS, setups("elsewhere").values()):
        losses = fitting(setup, budget)
        answer = max(losses, key=known_share)
        best = min(losses, key=losses.__getitem__)
        lost = 100 * (losses[answer] - losses[best]) / (setup.mean("none") - losses[best])
        if answer == best:
            yield f"{lost:.1f} %"
            continue
        mean, error = difference(setup, answer, best, best)
        reach = oracle.quantile(len(setup.rows[best]) - 1) * error
        yield f"{lost:.1f} % [{mean - reach:+.1f}, {mean + reach:+.1f}]"


def order() -> Iterator[str]:
    """Spearman's correlation of the evidence with the losses on another base, within a budget."""
    for budget, setup in product(BUDGETS, setups("elsewhere").values()):
        losses = {key: loss for key, loss in fitting(setup, budget).items() if limit(key) == budget}
        ours = ranks([known_share(key) for key in losses])
        other = ranks([-loss for loss in losses.values()])
        n, value = len(losses), statistics.correlation(ours, other)
        error = math.sqrt((1 + value * value / 2) / (n - 3))
        low, high = (math.tanh(math.atanh(value) + s * 1.959964 * error) for s in (-1, 1))
        yield f"{value:.2f} [{low:.2f}, {high:.2f}]"


def ranks(values: list[float]) -> list[float]:
    """From 0; equal values share the mean of their places."""
    in_order = sorted(values)
    return [in_order.index(value) + (values.count(value) - 1) / 2 for value in values]


def rates() -> Iterator[str]:
    """What the learning rate from all searches loses, and that from the searches of other bases."""
    for name in ("qpa", "uni", "lora"):
        of_setups = lost_by(name, "lora", 0.5 if name == "uni" else 0)
        yield from (
            "{:.0f} ({:.0f})".format(*(100 * max(some) for some in zip(*of, strict=True)))
            for of in of_setups
        )


def powers() -> Iterator[str]:
    for what, power in [
        ("nothing", 0),
        *product(("width", "maps", "head", "norm", "rms", "lora"), (0.5, -0.5)),
    ]:
        for name in ("qpa", "uni", "lora"):
            yield f"{100 * max(other for of in lost_by(name, what, power) for _, other in of):.0f}"


def lost_by(name: str, what: str, power: float) -> list[list[tuple[float, float]]]:
    """What is lost in each search, for each configuration, by the rate from all searches and that
    from other bases.
    """
    searches = [*setups("equal-search").values(), *setups("rates").values()]
    keys = [key for key in next(iter(setups("rates").values())).rows if key.startswith(f"{name}_")]
    found = [[losses(one, key, quantity(one, what) ** power) for key in keys] for one in searches]
    table = []
    for here, own in zip(searches, found, strict=True):
        others = [of for one, of in zip(searches, found, strict=True) if one.base != here.base]
        both = [[chosen([*some]) for some in zip(*known, strict=True)] for known in (found, others)]
        table.append(
            [(nearest(of, a), nearest(of, b)) for of, a, b in zip(own, *both, strict=True)]
        )
    return table


def quantity(setup: Setup, what: str) -> float:
    """Of the base, what a learning rate may grow with."""
    shapes, n_layers = SHAPES[setup.base], LAYERS[setup.base]
    sizes = {
        "width": shapes[0][1],
        "maps": n_layers * len(shapes),
        "head": HEADS[setup.base],
        "nothing": 1,
    }
    sizes |= zip(("norm", "rms"), NORMS[setup.base], strict=True)
    return {**sizes, "lora": n_layers * sum(map(sum, shapes))}[what]


def losses(search: Setup, key: str, times: float) -> dict[float, float]:
    """The share of the best rate's gain that each learning rate of a configuration loses; the rates
    over `times`.
    """
    base, trials = search.mean("none", "valid_loss"), search.trials[key]
    gains = {
        row["lr"]: base - row["valid_loss"] if row["status"] == "success" else 0.0 for row in trials
    }
    return {rate / times: 1 - gain / max(gains.values()) for rate, gain in gains.items()}


def nearest(of_rates: dict[float, float], rate: float | None) -> float:
    """Everything without a rate."""
    return (
        1.0
        if rate is None
        else of_rates[min(of_rates, key=lambda tried: abs(math.log(tried / rate)))]
    )


def chosen(searches: list[dict[float, float]]) -> float | None:
    """That with the lowest cost, a loss and a 20th of the next higher rate's, in the search where
    it costs most.
    """
    costs = [{a: lost[a] + 0.05 * lost[b] for a, b in pairwise(sorted(lost))} for lost in searches]
    low, high = max(map(min, costs)) / 2, 2 * min(map(max, costs))
    tried = sorted({rate for of in costs for rate in of if low < rate < high})
    return min(tried, key=lambda rate: max(nearest(of, rate) for of in costs)) if tried else None


def changed(setup: Setup, key: str, to: str) -> str:
    """The paired difference over the seeds with its interval, in per cent of the reference's gain."""
    ours, other = ({row["seed"]: row["test_loss"] for row in setup.rows[k]} for k in (key, to))
    change = oracle.compare(oracle.Result(ours, []), oracle.Result(other, []), True)
    per_cent = (setup.mean("none") - setup.mean(setup.study["reference"])) / 100
    mean, low, high = (change[name] / per_cent for name in ("mean", "low", "high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def circuit() -> Iterator[str]:
    for keys, old_keys in CIRCUIT.items():
        for setup in setups("controls").values():
            yield changed(setup, *keys)
        for setup in setups("controls-80-steps").values():
            yield changed(setup, *old_keys)


def bits() -> Iterator[str]:
    for key in ("bits_8", "bits_4", "bits_3", "bits_2", "shared"):
        yield changed(setups("bits")["embedded"], key, "float32")


def shots() -> Iterator[str]:
    for study, keys, paper in (
        ("shots", ("shots_65536", "shots_1024"), "paper_128"),
        ("noise", ("noise_0.001", "noise_0.01"), "paper_0.05"),
    ):
        (setup,) = setups(study).values()
        for key in keys:
            yield changed(setup, key, "exact")
        yield changed(setup, paper, "paper")


TABLES = {
    "equal": equal,
    "pairs": lambda: means(FINAL, PAIRS, BUDGETS),
    "later_pairs": lambda: means(FINAL, LATER_PAIRS, BUDGETS, of_one_size=(3,)),
    "twins": lambda: means(ADAPTERS, TWINS, (400, 1300, 10000)),
    "pooled": pooled,
    "margins": margins,
    "epochs": epochs,
    "circuit": circuit,
    "bits": bits,
    "shots": shots,
    "order": order,
    "regrets": regrets,
    "rates": rates,
    "powers": powers,
    "stored": stored,
}

if __name__ == "__main__":
    for table in sys.argv[1:]:
        print(*TABLES[table](), sep="\n")
