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
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import recompute_summary as oracle

RESULTS = Path(__file__).resolve().parents[1] / "results"
FINAL = "equal-search-final"
EPOCHS = "equal-search-epochs"
ADAPTERS = "quantum-adapters-final"
ENDED = (FINAL, ADAPTERS, EPOCHS, "margins", "elsewhere", "angles", "smollm2")
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
FACTORS = (1, 10, 50, 200)
SENTENCE_PAIRS = [
    ("framed", "signs"),
    ("qpa", "qpa_frozen"),
    *((ours, other) for ours in ("framed", "qpa") for other in ("head", "uni", "sb")),
]
RECIPE_PAIRS = [("qpa", other) for other in ("lora", "lora_r2", "qpa_none")]
DESCRIBED_PAIRS = list(product(("quantum_peft", "pauli"), ("lora", "lora_r1")))
HEAD_PAIRS = [
    *(("qpa", other) for other in ("lora_r4", "lora_r2", "uni", "qpa_frozen", "qpa_random")),
    *((ours, "qpa") for ours in ("qpa_paper", "qpa_10", "qpa_50")),
]
UPPER_PAIRS = [
    ("pauli", "signs"),
    *(("qaa", other) for other in ("givens", "qaa_frozen", "qaa_quadratic", "lora_r5")),
    ("cua", "oft"),
    ("quic", "random"),
    ("quanta", "mpo"),
]
SHOTS = [
    ("shots", "shots_65536", "exact"),
    ("shots", "shots_1024", "exact"),
    ("shots", "paper_128", "paper"),
    ("noise", "noise_0.001", "exact"),
    ("noise", "noise_0.01", "exact"),
    ("noise", "paper_0.05", "paper"),
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
# of a base: layers, outputs of the head, and means over its maps: Frobenius norm, and root mean
# square of the entries
SIZES = {
    "embedded": (5, 4096, 14.2, 0.0647),
    "stories": (5, 512, 10.1, 0.135),
    "bytes1m": (5, 258, 14.7, 0.0674),
    "llama10m": (10, 4096, 9.96, 0.0303),
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
    of_study = {}
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
            of_study[setup] = Setup(setup.partition("-")[0], study, rows, trials)
    return of_study


class Configuration(NamedTuple):
    """Its gain over the untrained base in validation loss, at its best rate; trained parameters."""

    gain: float
    size: int


@cache
def searched(setup: str, study: str = "equal-search") -> dict[str, list[Configuration]]:
    """The configurations that fit, by FAMILY_BUDGET, the best first."""
    searches = setups(study)
    if setup in searches:
        search = searches[setup]
    else:  # another text of the same base chose
        base = setup.partition("-")[0]
        search = next(each for each in searches.values() if each.base == base)
    of_name: dict[str, list[Configuration]] = {}
    for key, trials in search.trials.items():
        name = key.rpartition("_")[0]
        losses = [row["valid_loss"] for row in trials if row["status"] == "success"]
        if losses and trials[0]["params_trainable"] <= budget_of(name):
            gain = search.mean("none", "valid_loss") - min(losses)
            configuration = Configuration(gain, trials[0]["params_trainable"])
            of_name.setdefault(name, []).append(configuration)
    return {name: sorted(of, reverse=True) for name, of in of_name.items()}


def budget_of(name: str) -> int:
    return int(name.rpartition("_")[2])


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


def shown(cells: list[Difference], df: int = 9, margin: float = 2) -> Iterator[str]:
    """Each with its interval and its verdict among all of them."""
    differ = {}
    inside = {}
    for number, (mean, error) in enumerate(cells):
        differ[str(number), ""] = {"p": oracle.tail(abs(mean) / error, df)}
        inside[str(number), ""] = {"p": above((margin - abs(mean)) / error, df)}
    oracle.correct(differ)
    oracle.correct(inside)
    # (mean, standard error) of each, and its two p values after Holm's correction
    for (mean, error), none, outside in zip(cells, differ.values(), inside.values(), strict=True):
        verdict = "undecided"
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
        best = {key: of[0] for key, of in searched(name).items() if of[0].size <= budget}
        with_circuit = {key for key in best if key.rpartition("_")[0] in CIRCUITS}
        ours = max(with_circuit, key=best.__getitem__)
        other = max(best.keys() - with_circuit, key=best.__getitem__)
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
            ratio = searches[ours][0].size / searches[other][0].size
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


def sides() -> Iterator[str]:
    studies = list(setups("margins").values())
    for key in [key for key in studies[0].rows if key not in ("none", "lora_r8")]:
        for setup in studies:
            row = setup.rows[key][0]
            gain = setup.mean("none") - setup.mean("lora_r8")
            share = 100 * (setup.mean("none") - setup.mean(key)) / gain
            yield f"{share:.0f} %; {row['params_trainable']:,} at {row['lr']:g}"
    for setup in studies:
        yield f"{setup.mean('none') - setup.mean('lora_r8'):.3f} nats"


def pooled() -> Iterable[str]:
    return shown([average(question) for question in questions()])


def angles() -> Iterable[str]:
    cells = []
    moved = []
    for factor, setup in product(FACTORS, setups("angles").values()):
        key = f"scale_{factor}"
        cells.append(difference(setup, key, "frozen", "lora_r8"))
        moved.append(setup.mean(key, "angles_moved"))
    for radians, text in zip(moved, shown(cells, 4), strict=True):
        yield f"{radians:.2f} rad; {text}"


def angles_far() -> Iterator[str]:
    for factor, setup in product(FACTORS, setups("angles").values()):
        losses = {
            (key, row["lr"]): row["valid_loss"]
            for key, rows in setup.trials.items()
            for row in rows
            if row["status"] == "success"
        }
        moves = [
            (row["angles_moved"], row["lr"])
            for row in setup.trials[f"scale_{factor}"]
            if row["status"] == "success" and ("frozen", row["lr"]) in losses
        ]
        moved, rate = max(moves)
        lost = losses[f"scale_{factor}", rate] - losses["frozen", rate]
        lora = min(loss for (key, _), loss in losses.items() if key == "lora_r8")
        per_cent = (setup.mean("none", "valid_loss") - lora) / 100
        yield f"{moved:.2f} rad; {lost / per_cent:+.1f}"


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
    in_all = sorted(set.intersection(*map(set, searches)))

    def expected(key: str) -> float:
        return statistics.mean(of[key][0].gain / of["lora_5000"][0].gain for of in searches)

    for n_adapters, most in product((1, 10, 100, 1000), (1_000, 2_000, 6_000, 25_000)):
        small = []
        for key in in_all:
            frame_files = (frames(setup, key) / n_adapters for setup in finals.values())
            own = (setup.mean(key, "bytes_stored") for setup in finals.values())
            if max(map(sum, zip(own, frame_files, strict=True))) <= most:
                small.append(key)
        yield f"{100 * share(max(small, key=expected)):.0f} %"


@cache
def share(key: str) -> float:
    """Of LoRA's gain in test loss, averaged over the setups."""
    shares = []
    for setup in setups(FINAL).values():
        untrained = setup.mean("none")
        shares.append((untrained - setup.mean(key)) / (untrained - setup.mean("lora_5000")))
    return statistics.mean(shares)


def frames(setup: Setup, key: str) -> int:
    """Bytes of two frames of 16 bits of each adapted map: of (d_out, R) and (d_in, R), R at most as
    large as both.
    """
    settings = next(method["settings"] for method in setup.study["methods"] if method["key"] == key)
    if settings.get("frame") not in ("gradient", "sign"):
        return 0
    shapes = SHAPES[setup.base]
    if "down_proj" in settings.get("target_modules", ""):
        shapes = shapes[:1]
    rank = settings.get("frame_rank", settings["r"])
    of_layer = sum(2 * (d_in + d_out) * min(rank, d_in, d_out) for d_in, d_out in shapes)
    return SIZES[setup.base][0] * of_layer


def fitting(setup: Setup, budget: int) -> dict[str, float]:
    """The test loss of the designs of `elsewhere` that fit, up to this budget, by FAMILY_BUDGET."""
    losses = {}
    for key, rows in setup.rows.items():
        name = key.rpartition("_")[0]
        if name and rows[0]["params_trainable"] <= budget_of(name) <= budget:
            losses[name] = setup.mean(key)
    return losses


def regrets() -> Iterator[str]:
    for budget, setup in product(BUDGETS, setups("elsewhere").values()):
        losses = fitting(setup, budget)
        answer = max(losses, key=share)
        best = min(losses, key=losses.__getitem__)
        lost = 100 * (losses[answer] - losses[best]) / (setup.mean("none") - losses[best])
        if answer == best:
            yield f"{lost:.1f} %"
            continue
        keys = {key.rpartition("_")[0]: key for key in setup.rows}
        mean, error = difference(setup, keys[answer], keys[best], keys[best])
        reach = oracle.quantile(len(setup.rows[keys[best]]) - 1) * error
        yield f"{lost:.1f} % [{mean - reach:+.1f}, {mean + reach:+.1f}]"


def order() -> Iterator[str]:
    """Spearman's correlation of the evidence with the losses on another base, within a budget."""
    for budget, setup in product(BUDGETS, setups("elsewhere").values()):
        losses = {
            name: loss for name, loss in fitting(setup, budget).items() if budget_of(name) == budget
        }
        n = len(losses)
        known = ranks([share(name) for name in losses])
        value = statistics.correlation(known, ranks([-loss for loss in losses.values()]))
        reach = 1.959964 * math.sqrt((1 + value * value / 2) / (n - 3))
        low, high = (math.tanh(math.atanh(value) + side) for side in (-reach, reach))
        yield f"{value:.2f} [{low:.2f}, {high:.2f}]"


def ranks(values: list[float]) -> list[float]:
    """From 0; equal values share the mean of their places."""
    in_order = sorted(values)
    return [in_order.index(value) + (values.count(value) - 1) / 2 for value in values]


# -- learning rates


def rates() -> Iterator[str]:
    """What the learning rate from all searches loses, and that from the searches of other bases."""
    for name in ("qpa", "uni", "lora"):
        for lost in lost_by(name, "lora", 0.5 if name == "uni" else 0):
            own = max(each.with_base for each in lost)
            yield f"{100 * own:.0f} ({100 * max(each.without_base for each in lost):.0f})"


def powers() -> Iterator[str]:
    grows = product(("width", "maps", "head", "norm", "rms", "lora"), (0.5, -0.5))
    for (what, power), name in product([("nothing", 0), *grows], ("qpa", "uni", "lora")):
        of_searches = lost_by(name, what, power)
        yield f"{100 * max(each.without_base for lost in of_searches for each in lost):.0f}"


class Lost(NamedTuple):
    """By the rate that all searches choose, and by that of the searches on other bases."""

    with_base: float
    without_base: float


def lost_by(name: str, what: str, power: float) -> list[list[Lost]]:
    """What is lost in each search, for each configuration of a family."""
    searches = [*setups("equal-search").values(), *setups("rates").values()]
    keys = [key for key in searches[-1].rows if key.startswith(f"{name}_")]
    table: list[list[Lost]] = [[] for _ in searches]
    for key in keys:
        tried = [losses(each, key, quantity(each, what) ** power) for each in searches]
        everywhere = chosen(tried)
        for here, own, line in zip(searches, tried, table, strict=True):
            others = [
                of for each, of in zip(searches, tried, strict=True) if each.base != here.base
            ]
            line.append(Lost(nearest(own, everywhere), nearest(own, chosen(others))))
    return table


def quantity(setup: Setup, what: str) -> float:
    """Of the base, what a learning rate may grow with."""
    shapes = SHAPES[setup.base]
    n_layers, head, norm, rms = SIZES[setup.base]
    return {
        "nothing": 1,
        "width": shapes[0][1],
        "maps": n_layers * len(shapes),
        "head": head,
        "norm": norm,
        "rms": rms,
        "lora": n_layers * sum(map(sum, shapes)),
    }[what]


def losses(search: Setup, key: str, times: float) -> dict[float, float]:
    """The share of the best rate's gain that each learning rate of a configuration loses; the rates
    over `times`.
    """
    gains = {}
    for row in search.trials[key]:
        failed = row["status"] != "success"
        gain = 0.0 if failed else search.mean("none", "valid_loss") - row["valid_loss"]
        gains[row["lr"] / times] = gain
    return {rate: 1 - gain / max(gains.values()) for rate, gain in gains.items()}


def nearest(of_rates: dict[float, float], rate: float | None) -> float:
    """That of the rate with the smallest ratio to this one; everything is lost without a rate."""
    if rate is None:
        return 1.0
    return of_rates[min(of_rates, key=lambda tried: abs(math.log(tried / rate)))]


def chosen(searches: list[dict[float, float]]) -> float | None:
    """That with the lowest cost, a loss and a 20th of the next higher rate's, in the search where
    it costs most.
    """
    costs = [{a: lost[a] + 0.05 * lost[b] for a, b in pairwise(sorted(lost))} for lost in searches]
    low = max(map(min, costs)) / 2
    high = 2 * min(map(max, costs))
    tried = sorted(rate for rate in set().union(*costs) if low < rate < high)
    return min(tried, key=lambda rate: max(nearest(of, rate) for of in costs), default=None)


# -- real models


def signal() -> Iterator[str]:
    for text in ("e2e", "shakespeare"):
        setup = setups("smollm2").get(f"signal-{text}")
        if setup is None:
            continue
        untrained = setup.mean("none")
        adapted = setup.mean("lora_r8")
        yield f"{untrained:.3f}"
        yield f"{adapted:.3f}"
        yield f"{untrained - adapted:.2f}"
        yield f"{setup.rows['lora_r8'][0]['lr']:g}"


def stage_1() -> tuple[Setup, float]:
    """The runs, and what LoRA r=8 gains on their text."""
    signal = setups("smollm2")["signal-e2e"]
    return setups("smollm2")["circuit-e2e"], signal.mean("none") - signal.mean("lora_r8")


def circuits() -> Iterator[str]:
    pairs = [(f"framed_{n}", f"{twin}_{n}") for n in range(1, 5) for twin in ("signs", "lie")]
    setup, unit = stage_1()
    yield from by_seed(setup, pairs, unit)


def circuit_losses() -> Iterator[str]:
    setup, unit = stage_1()
    for key in sorted(setup.rows.keys() - {"none"}, key=setup.mean):
        yield f"{setup.rows[key][0]['params_trainable']:,}"
        yield f"{setup.mean(key):.3f}"
        yield f"{100 * (setup.mean('none') - setup.mean(key)) / unit:.1f} %"
        if not key.startswith("lie"):
            yield f"{setup.mean(key, 'angles_moved'):.2f}"


IN_FRAMES = ("framed", "signs", "lie", "core", "sb")
ON_SMALL = {500: 400, 10_000: 5_000}  # the budget of the small bases


def stage_2(budget: int) -> dict[str, list[dict[str, Any]]]:
    """By family, its runs at the rate with the lower validation loss in seed 10; the best first."""
    of = setups("smollm2")
    circuits, searched, further = (
        of[name].rows for name in ("circuit-e2e", "adapters-500-e2e", "adapters-500-seeds-e2e")
    )
    chosen = {}
    if budget == 500:
        for family in ("framed", "signs", "lie"):
            chosen[family] = min(
                (circuits[f"{family}_{n}"] for n in (2, 3)), key=lambda rows: rows[0]["valid_loss"]
            )
        for family in ("core", "sb", "uni", "tiny", "qpa", "xs", "gains"):
            of_seed_10 = [searched[f"{family}_{n}"][0] for n in (1, 3)]
            first = min(of_seed_10, key=lambda row: row["valid_loss"])
            chosen[family] = [first, *further[family]]
            assert {row["lr"] for row in chosen[family]} == {first["lr"]}
    else:
        rows, more = (of[f"adapters-10000-{name}"].rows for name in ("e2e", "seeds-e2e"))
        for key in rows.keys() - {"none"}:
            family = key.partition("_")[0]
            of_seed_10 = [rows[f"{family}_{n}"][0] for n in (1, 3)]
            first = min(of_seed_10, key=lambda row: row["valid_loss"])
            chosen[family] = [first, *more[family]]
            assert {row["lr"] for row in chosen[family]} == {first["lr"]}
    return dict(sorted(chosen.items(), key=lambda item: mean_test(item[1])))


def mean_test(rows: list[dict[str, Any]]) -> float:
    return statistics.mean(row["test_loss"] for row in rows)


def adapters_of_stage_2(budget: int) -> Iterator[str]:
    chosen = stage_2(budget)
    _, unit = stage_1()
    untrained = setups("smollm2")["adapters-500-e2e"].mean("none")
    on_small = sorted(chosen, key=lambda family: -share(f"{family}_{ON_SMALL[budget]}"))
    for place, (family, rows) in enumerate(chosen.items(), start=1):
        yield f"{place}"
        yield f"{on_small.index(family) + 1}"
        yield f"{rows[0]['params_trainable']:,}"
        yield f"{rows[0]['lr']:g}"
        yield f"{mean_test(rows):.3f}"
        yield gained_text(rows, untrained, unit)


def gained_text(rows: list[dict[str, Any]], untrained: float, unit: float) -> str:
    """In per cent of the unit, with Student's interval over more than one seed."""
    gained = [100 * (untrained - row["test_loss"]) / unit for row in rows]
    text = f"{statistics.mean(gained):.0f} %"
    if len(rows) > 1:
        error = statistics.stdev(gained) / math.sqrt(len(gained))
        reach = oracle.quantile(len(gained) - 1) * error
        low, high = (statistics.mean(gained) + side for side in (-reach, reach))
        text += f" [{low:.0f}, {high:.0f}]"
    return text


def beside_framed() -> Iterator[str]:
    chosen = stage_2(500)
    _, unit = stage_1()
    others = ("core", "sb", "uni", "qpa", "xs")
    yield from of_rows([(chosen["framed"], chosen[other]) for other in others], unit)


def pairs_10000() -> Iterator[str]:
    runs = stage_2(10_000) | setups("smollm2")["adapters-10000-twins-e2e"].rows
    pairs = [
        *(("framed", other) for other in ("signs", "lie", "core")),
        *(("qpa", other) for other in ("qpa_frozen", "qpa_random", "uni", "framed")),
    ]
    _, unit = stage_1()
    yield from of_rows([(runs[ours], runs[other]) for ours, other in pairs], unit)


def order_500() -> Iterator[str]:
    for budget, small in ON_SMALL.items():
        chosen = list(stage_2(budget))
        known = {family: share(f"{family}_{small}") for family in chosen}
        for texts in taus(chosen, known):
            yield from texts


def taus(best_first: list[str], known: dict[str, float]) -> Iterator[tuple[str, str, str]]:
    """Kendall's tau: pairs in the same order minus pairs in the other, as a part of all pairs."""
    framed = [family for family in best_first if family in IN_FRAMES]
    others = [family for family in best_first if family not in framed]
    groups = {"all": best_first, "in frames of the gradient": framed, "the others": others}
    for label, group in groups.items():
        n = len(group)
        pairs = combinations((known[family] for family in group), 2)
        signs = [1 if a > b else -1 for a, b in pairs]
        tau = sum(signs) / len(signs)
        text = f"{tau:.2f}"
        if n > 5:
            reach = 1.959964 * math.sqrt(0.437 / (n - 4))
            low, high = (math.tanh(math.atanh(tau) + side) for side in (-reach, reach))
            text += f" [{low:.2f}, {high:.2f}]"
        yield label, f"{n}", text


def stage_7() -> tuple[dict[str, list[dict[str, Any]]], dict[str, float]]:
    """By family, the best first, its runs on Shakespeare; and its mean loss on the E2E references."""
    rows = setups("smollm2")["adapters-500-shakespeare"].rows
    families = sorted(rows.keys() - {"none"}, key=lambda family: mean_test(rows[family]))
    circuits, e2e = setups("smollm2")["circuit-e2e"].rows, stage_2(500)
    on_e2e = {}
    for family in families:
        twin = circuits[f"{family}_3"] if family in ("framed", "signs", "lie") else e2e[family]
        assert {row["lr"] for row in rows[family]} == {row["lr"] for row in twin}
        seeds = [row["seed"] for row in rows[family]]
        on_e2e[family] = mean_test([row for row in twin if row["seed"] in seeds])
    return {family: rows[family] for family in families}, on_e2e


def unit_of_shakespeare() -> float:
    signal = setups("smollm2")["signal-shakespeare"]
    return signal.mean("none") - signal.mean("lora_r8")


def on_shakespeare() -> Iterator[str]:
    chosen, on_e2e = stage_7()
    untrained = setups("smollm2")["adapters-500-shakespeare"].mean("none")
    places = sorted(on_e2e, key=lambda family: on_e2e[family])
    for place, (family, rows) in enumerate(chosen.items(), start=1):
        yield from (f"{place}", f"{places.index(family) + 1}", f"{rows[0]['lr']:g}")
        yield f"{mean_test(rows):.3f}"
        yield gained_text(rows, untrained, unit_of_shakespeare())


def order_on_shakespeare() -> Iterator[str]:
    chosen, on_e2e = stage_7()
    for _, *texts in taus(list(chosen), {family: -loss for family, loss in on_e2e.items()}):
        yield from texts


def beside_framed_on_shakespeare() -> Iterator[str]:
    chosen, _ = stage_7()
    others = ("signs", "lie", "core", "sb", "uni", "qpa", "xs")
    pairs = [(chosen["framed"], chosen[other]) for other in others]
    yield from of_rows(pairs, unit_of_shakespeare())


def generated() -> Iterator[str]:
    """Stage 6: each adapter has one row, and two numbers for each text."""
    rows = {key: of[0] for key, of in setups("smollm2")["generation-short"].rows.items()}
    counted = json.loads((RESULTS / "smollm2" / "slot-values-short.json").read_text("utf-8"))
    scores = {key: row["bleu_lowercase"] for key, row in rows.items()}
    yield from named_values(counted["people"]["all"])
    for key in sorted(rows, key=lambda key: scores[key], reverse=True):
        counts = counted[key]["30"]
        assert len(counts) == 200
        yield f"{rows[key]['params_trainable']:,}"
        yield f"{scores[key]:.1f}"
        gained = scores[key] - scores["none"]
        yield f"{100 * gained / (scores['lora_r8'] - scores['none']):.0f} %"
        yield from named_values(counts)
        yield f"{rows[key]['test_loss']:.3f}"


def named_values(counts: list[list[int]]) -> Iterator[str]:
    """Of all values those that are named, and of all texts those that name all of theirs."""
    yield f"{100 * sum(n for n, _ in counts) / sum(n for _, n in counts):.0f} %"
    yield f"{statistics.mean(100 * (n == of) for n, of in counts):.0f} %"


def stage_3() -> list[Setup]:
    texts = ("e2e", "gsm8k", "grimm", "stories", "numpy", "python")
    return [setups("smollm2")[f"frames-{text}"] for text in texts]


def shared_frames() -> Iterator[str]:
    """What is kept of the gain in the own frame; more than 20 per cent lost is a falsifier."""
    of_texts = stage_3()
    kept = {
        key: [
            100 * (of.mean("none") - of.mean(key)) / (of.mean("none") - of.mean("own"))
            for of in of_texts
        ]
        for key in of_texts[0].rows
        if key not in ("none", "own", "lora_r8")
    }
    df = len(of_texts) - 1
    error = {key: statistics.stdev(of) / math.sqrt(len(of)) for key, of in kept.items()}
    t = {key: (statistics.mean(of) - 80) / error[key] for key, of in kept.items()}
    differs = {(key, ""): {"p": oracle.tail(abs(t[key]), df)} for key in kept}
    keeps = {(key, ""): {"p": above(t[key], df) if t[key] > 0 else 1.0} for key in kept}
    for found in (differs, keeps):
        oracle.correct(found)
    for key, of in kept.items():
        yield from (f"{each:.0f} %" for each in of)
        mean = statistics.mean(of)
        reach = oracle.quantile(df) * error[key]
        yield f"{mean:.0f} % [{mean - reach:.0f}, {mean + reach:.0f}]"
        is_lost = t[key] < 0 and differs[key, ""]["p_holm"] < 0.05
        verdict = "loses more than 20 %" if is_lost else "undecided"
        yield "keeps at least 80 %" if keeps[key, ""]["p_holm"] < 0.05 else verdict


def customers() -> Iterator[str]:
    for setup in stage_3():
        yield f"{setup.mean('none'):.3f}"
        yield f"{setup.mean('own'):.3f}"
        yield f"{setup.mean('lora_r8'):.3f}"
        gain, of_lora = (setup.mean("none") - setup.mean(key) for key in ("own", "lora_r8"))
        yield f"{100 * gain / of_lora:.0f} %"


def sentences() -> Iterator[str]:
    setup = setups("smollm2")["sst2"]
    head = setup.mean("head")
    for key in sorted(setup.rows, key=setup.mean):
        first = setup.rows[key][0]
        yield f"{first['params_trainable'] - first['params_head']:,}"  # the head is not counted
        yield f"{first['lr']:g}"
        yield f"{setup.mean(key):.3f}"
        yield f"{100 * (head - setup.mean(key)) / (head - setup.mean('lora_r1')):.0f} %"
        low, mean, high = (
            100 * setup.mean(key, f"test_accuracy{e}") for e in ("_low", "", "_high")
        )
        yield f"{mean:.1f} % [{low:.1f}, {high:.1f}]"


def sentence_pairs() -> Iterator[str]:
    setup = setups("smollm2")["sst2"]
    yield from by_seed(setup, SENTENCE_PAIRS, setup.mean("head") - setup.mean("lora_r1"))


def heads(setup: Setup, score: str = "test_ppl") -> Iterator[str]:
    untrained = setup.mean("none")
    for key in sorted(setup.rows, key=setup.mean):
        first = setup.rows[key][0]
        yield f"{first['params_trainable']:,}"
        if key != "none":
            yield f"{first['lr']:g}"
        yield f"{setup.mean(key):.3f}"
        yield f"{setup.mean(key, score):.1f}"
        share = (untrained - setup.mean(key)) / (untrained - setup.mean(setup.study["reference"]))
        yield f"{100 * share:.1f} %"


def head_pairs(setup: Setup, pairs: list[tuple[str, str]]) -> Iterator[str]:
    yield from by_seed(setup, pairs, setup.mean("none") - setup.mean(setup.study["reference"]))


def stage_4() -> Setup:
    return setups("smollm2")["head-wikitext2"]


def stage_8() -> Setup:
    return setups("smollm2")["twins-e2e"]


def recipe() -> Setup:
    return setups("recipes")["qpa-smollm2-wikitext2"]


def described() -> Setup:
    return setups("recipes")["quantum-peft-smollm2-e2e"]


def by_seed(setup: Setup, pairs: list[tuple[str, str]], unit: float) -> Iterator[str]:
    """The difference of each pair of keys over the seeds, in per cent of the unit."""
    return of_rows([(setup.rows[ours], setup.rows[other]) for ours, other in pairs], unit)


def of_rows(
    pairs: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]], unit: float
) -> Iterator[str]:
    """The difference of each pair of runs with equal seeds, in per cent of the unit."""
    cells = []
    for ours, other in pairs:
        assert [row["seed"] for row in ours] == [row["seed"] for row in other]
        rows = zip(ours, other, strict=True)
        lost = [100 * (row["test_loss"] - twin["test_loss"]) / unit for row, twin in rows]
        error = statistics.stdev(lost) / math.sqrt(len(lost)) or 1e-12
        cells.append(Difference(statistics.mean(lost), error))
    yield from shown(cells, len(pairs[0][0]) - 1, margin=5)


# -- studies before the protocol


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
    for study, key, to in SHOTS:
        (setup,) = setups(study).values()
        yield changed(setup, key, to)


TABLES = {
    "equal": equal,
    "pairs": lambda: means(FINAL, PAIRS, BUDGETS),
    "later_pairs": lambda: means(FINAL, LATER_PAIRS, BUDGETS, of_one_size=(3,)),
    "twins": lambda: means(ADAPTERS, TWINS, (400, 1300, 10000)),
    "sides": sides,
    "pooled": pooled,
    "margins": margins,
    "angles": angles,
    "angles_far": angles_far,
    "epochs": epochs,
    "circuit": circuit,
    "bits": bits,
    "shots": shots,
    "order": order,
    "regrets": regrets,
    "rates": rates,
    "powers": powers,
    "stored": stored,
    "signal": signal,
    "adapters_500": lambda: adapters_of_stage_2(500),
    "adapters_10000": lambda: adapters_of_stage_2(10_000),
    "pairs_10000": pairs_10000,
    "beside_framed": beside_framed,
    "order_500": order_500,
    "on_shakespeare": on_shakespeare,
    "order_on_shakespeare": order_on_shakespeare,
    "beside_framed_on_shakespeare": beside_framed_on_shakespeare,
    "generated": generated,
    "shared_frames": shared_frames,
    "customers": customers,
    "sentences": sentences,
    "sentence_pairs": sentence_pairs,
    "circuits": circuits,
    "circuit_losses": circuit_losses,
    "heads": lambda: heads(stage_4()),
    "head_pairs": lambda: head_pairs(stage_4(), HEAD_PAIRS),
    "upper": lambda: heads(stage_8()),
    "upper_pairs": lambda: head_pairs(stage_8(), UPPER_PAIRS),
    "recipe": lambda: heads(recipe()),
    "recipe_pairs": lambda: head_pairs(recipe(), RECIPE_PAIRS),
    "described": lambda: heads(described(), "bleu_lowercase"),
    "described_pairs": lambda: head_pairs(described(), DESCRIBED_PAIRS),
}

if __name__ == "__main__":
    for table in sys.argv[1:]:
        print(*TABLES[table](), sep="\n")
