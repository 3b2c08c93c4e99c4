"""Recompute tables of docs/findings.md from the rows with Python's standard library alone, and
print their cells.

    python evidence/recompute_tables.py equal pairs

A line per cell, row by row. Words, such as the names of adapters, are left out.
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
FINAL, ADAPTERS, EPOCHS = "equal-search-final", "quantum-adapters-final", "equal-search-epochs"
ENDED = (FINAL, ADAPTERS, EPOCHS, "margins", "elsewhere")
BUDGETS, CIRCUITS = (128, 400, 1300, 5000), {"qpa", "plain", "framed"}
TWINS = [("cua", "oft"), ("magnitude", "cua"), ("quic", "quic_random"), ("quanta", "mpo")]
TWINS += [("quic", "lora"), ("quanta", "lora"), ("qchft", "lora")]
PAIRS = [
    ("plain", "uni"),
    ("core", "xs"),
    ("qpa", "uni"),
    ("qpa", "lora"),
    *(("framed", other) for other in ("signs", "lie", "core", "uni")),
]
CIRCUIT = [("controls", "paper_none", "qpa_paper"), ("controls", "product", "quantum_peft")]
CIRCUIT += [("controls", "qaa_frozen", "qaa"), ("survey", "lora@qaa", "qaa")]
BITS = [("bits", key, "float32") for key in ("bits_8", "bits_4", "bits_3", "bits_2", "shared")]
SHOTS = [("shots", f"shots_{n}", "exact") for n in (65536, 1024)] + [
    ("shots", "paper_128", "paper")
]
SHOTS += [("noise", f"noise_{p}", "exact") for p in (0.001, 0.01)] + [
    ("noise", "paper_0.05", "paper")
]
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


# -- comparisons with a margin


def difference(ours: Rows, others: Rows) -> tuple[float, float]:
    """Mean and standard error of the difference of the blocks of each seed."""
    both = zip(ours, others, strict=True)
    table = [
        [a - b for a, b in zip(x["test_losses"], y["test_losses"], strict=True)] for x, y in both
    ]
    seeds, blocks = (
        [statistics.mean(row) for row in table],
        [statistics.mean(row) for row in zip(*table, strict=True)],
    )
    error = math.sqrt(sum(statistics.variance(v) / len(v) for v in (seeds, blocks)))
    return statistics.mean(seeds), error or 1e-12


def margin(setup: Setup, lora: str) -> float:
    return 0.02 * (setup.mean("none") - setup.mean(lora))


def shown(cells: list[tuple[float, float, float]], df: int = 9) -> Iterator[str]:
    """Each mean, of mean, standard error and margin, with its interval and its verdict among all of
    them.
    """
    differ = {
        (str(i), ""): {"p": oracle.tail(abs(mean) / error, df)}
        for i, (mean, error, _) in enumerate(cells)
    }
    inside = {
        (str(i), ""): {"p": above((m - abs(mean)) / error, df)}
        for i, (mean, error, m) in enumerate(cells)
    }
    oracle.correct(differ)
    oracle.correct(inside)
    for (mean, error, _), one, other in zip(cells, differ.values(), inside.values(), strict=True):
        found = ("better" if mean < 0 else "worse") if one["p_holm"] < 0.05 else "open"
        verdict, reach = (
            "equivalent" if other["p_holm"] < 0.05 else found,
            oracle.quantile(df) * error,
        )
        yield f"{mean:+.3f} [{mean - reach:+.3f}, {mean + reach:+.3f}], {verdict}"


def above(t: float, df: int) -> float:
    """P(T > t) for Student's T."""
    half = oracle.tail(abs(t), df) / 2
    return half if t > 0 else 1 - half


def equal() -> Iterable[str]:
    cells = []
    for most in BUDGETS:
        for name, setup in setups(FINAL).items():
            fits = {key: of[0][0] for key, of in searched(name).items() if of[0][1] <= most}
            kinds = [
                [key for key in fits if (key.rpartition("_")[0] in CIRCUITS) is has]
                for has in (True, False)
            ]
            ours, other = (max(some, key=fits.__getitem__) for some in kinds)
            cells.append(
                (*difference(setup.rows[ours], setup.rows[other]), margin(setup, "lora_5000"))
            )
    return shown(cells)


def means(study: str, pairs: list[tuple[str, str]], budgets: Sequence[int]) -> Iterable[str]:
    """The mean for each pair and budget over the setups that searched no more configurations of the
    first.
    """
    found, cells = setups(study), []
    inside = statistics.mean(margin(setup, f"lora_{budgets[-1]}") for setup in found.values())
    searches = {name: searched(name, study.removesuffix("-final")) for name in found}
    for one, other in (
        [f"{family}_{most}" for family in pair] for pair in pairs for most in budgets
    ):
        fair = [
            name
            for name, of in searches.items()
            if 0 < len(of.get(one, ())) <= len(of.get(other, ()))
        ]
        if fair:
            cells.append((*average([found[name] for name in fair], one, other), inside))
    return shown(cells)


def average(found: list[Setup], one: str, other: str) -> tuple[float, float]:
    of = [difference(setup.rows[one], setup.rows[other]) for setup in found]
    return statistics.mean(mean for mean, _ in of), math.sqrt(
        sum(error**2 for _, error in of)
    ) / len(of)


def margins() -> Iterable[str]:
    found, cells = setups("margins").values(), []
    for method in next(iter(found)).study["methods"]:
        if one := method["against"]:
            cells += [(*average([s], one, method["key"]), margin(s, "lora_r8")) for s in found]
    return shown(cells)


def epochs() -> Iterable[str]:
    cells = []
    for n, other, most in product("14", ("uni", "xs", "tokens"), BUDGETS[:3]):
        of = [setup for name, setup in setups(EPOCHS).items() if name.endswith(n)]
        inside = statistics.mean(margin(setup, "lora_1300") for setup in of)
        cells.append((*average(of, f"framed_{most}", f"{other}_{most}"), inside))
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


def regrets() -> Iterator[str]:
    for most in BUDGETS:
        for setup in setups("elsewhere").values():
            limits = {key: int(key.split("_")[-2]) for key in setup.rows if key != "none"}
            sizes = {key: setup.rows[key][0]["params_trainable"] for key in limits}
            fits = {
                key: setup.mean(key) for key, limit in limits.items() if sizes[key] <= limit <= most
            }
            answer = max(fits, key=lambda key: share(key.rpartition("_")[0]))
            yield (
                f"{100 * (fits[answer] - min(fits.values())) / (setup.mean('none') - min(fits.values())):.1f} %"
            )


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


def replaced(asked: list[tuple[str, str, str]]) -> Iterator[str]:
    """The paired difference over the seeds with its interval, in per cent of the reference's gain."""
    for study, key, to in asked:
        found = setups(study)
        setup = found.get("embedded") or next(iter(found.values()))
        values = [{row["seed"]: row["test_loss"] for row in setup.rows[k]} for k in (key, to)]
        of = oracle.compare(*(oracle.Result(one, []) for one in values), lower_is_better=True)
        gain = setup.mean("none") - setup.mean(setup.study["reference"])
        yield "{:+.1f} [{:+.1f}, {:+.1f}]".format(
            *(100 * of[name] / gain for name in ("mean", "low", "high"))
        )


TABLES = {
    **{"pairs": lambda: means(FINAL, PAIRS, BUDGETS), "circuit": lambda: replaced(CIRCUIT)},
    **{"bits": lambda: replaced(BITS), "shots": lambda: replaced(SHOTS)},
    "twins": lambda: means(ADAPTERS, TWINS, (400, 1300, 10000)),
    **{make.__name__: make for make in (equal, margins, epochs, stored, regrets, rates, powers)},
}

if __name__ == "__main__":
    for table in sys.argv[1:]:
        print(*TABLES[table](), sep="\n")
