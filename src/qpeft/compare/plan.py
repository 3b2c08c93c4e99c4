"""From a study to its cells: everything resolved, split, hashed and counted before any of them runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qpeft.compare.budget import Counts, Member, count, members
from qpeft.compare.cells.cell import Cell
from qpeft.compare.data import Splits, split_data
from qpeft.compare.rows import SCHEMA, read_row, row_path
from qpeft.compare.study import UNTRAINED, MethodSpec, Study
from qpeft.core.meta_model import on_meta
from qpeft.demo import base_model
from qpeft.errors import ConfigError
from qpeft.files import read_json, write_json
from qpeft.training.base_model import block_length, fingerprint, load_config
from qpeft.training.methods import virtual_tokens


@dataclass(frozen=True)
class Plan:
    """The cells of a study in `folder`; `study` is what study.json holds."""

    folder: Path
    study: dict[str, Any]
    recipe: dict[str, Any]  # what is equal for all cells

    def write(self) -> None:
        """Put study.json into the folder, which whoever calls must have for itself."""
        write_json(self.folder / "study.json", self.study)

    def tuning_cells(self) -> list[Cell]:
        """A trial of each rate of each method that has several, cheap methods first."""
        trials = [(method, rate) for method in self._by_cost() if len(method["rates"]) > 1 for rate in method["rates"]]
        seed = self.study["tuning"]["seed"]
        return [self._cell(method, "tuning", f"lr{rate:g}", seed, rate) for method, rate in trials]

    def final_cells(self) -> list[Cell]:
        """Every method with every seed, seed by seed, at the rate whose trial ended lowest on validation data.

        What trains nothing is measured once. A method without any trial that ended well has cells that say so in
        `impossible`.
        """
        chosen = {method["key"]: self._chosen(method) for method in self.study["methods"]}
        cells = []
        for seed in self.study["seeds"]:
            for method in self._by_cost():
                if _is_exact(self.study, method) and seed != self.study["seeds"][0]:
                    continue
                rate, why_not = chosen[method["key"]]
                cells.append(self._cell(method, method["role"], f"seed{seed}", seed, rate, why_not))
        return cells

    def cost_cells(self) -> list[Cell]:
        """Time and memory of every method, measured alone; none where the study does without."""
        if not self.study["costs"]:
            return []
        chosen = {method["key"]: self._chosen(method) for method in self.study["methods"]}
        seed = self.study["seeds"][0]
        return [
            self._cell(method, "cost", "cost", seed, *chosen[method["key"]])
            for method in self._by_cost()
            if method["method"] != UNTRAINED
        ]

    def estimate(self) -> dict[str, float]:
        """Hours of each phase (tuning, final, cost) with one worker, from a few timed steps of every method."""
        from qpeft.compare.estimate import estimate_hours

        return estimate_hours(self.tuning_cells(), self.final_cells(), self.cost_cells(), self.folder)

    def _by_cost(self) -> list[dict[str, Any]]:
        return sorted(self.study["methods"], key=lambda method: method["trainable"])

    def _chosen(self, method: dict[str, Any]) -> tuple[float | None, str | None]:
        rates = method["rates"]
        if len(rates) < 2:
            return (rates[0] if rates else None), None
        found = {rate: self._trial(method, rate) for rate in rates}
        ended_well = {rate: loss for rate, loss in found.items() if loss is not None}
        if not ended_well:
            return None, "no trial of a learning rate ended well; give the method a lower lr"
        return min(ended_well, key=lambda rate: ended_well[rate]), None

    def _trial(self, method: dict[str, Any], rate: float) -> float | None:
        row = read_row(row_path(self.folder, self.study["study"], method["key"], method["hash"], f"lr{rate:g}"))
        return row["quality"].get("valid_loss") if row and row["status"] == "success" else None

    def _cell(
        self, method: dict[str, Any], role: str, name: str, seed: int, rate: float | None, impossible: str | None = None
    ) -> Cell:
        rates = method["rates"]
        return Cell(
            study=self.study["study"],
            method=method["key"],
            role=role,
            name=name,
            seed=seed,
            hash=method["hash"],
            weight=float(method["trainable"]),
            config={key: method.get(key, {}) for key in ("label", "method", "host", "settings", "backend", "rates")},
            lr=rate,
            lr_at_edge=_edge(rate, rates) if role != "tuning" else None,
            recipe=self.recipe,
            impossible=impossible,
        )


def make_plan(study: Study, folder: Path, command: str = "") -> Plan:
    """Resolve the base, split and hash the data, and count every method. Of a folder in use nothing is changed.

    Raises InputError, ConfigError or DataError for what cannot be run, before any cell.
    """
    _check_folder(study, folder)
    _check_encoder(study)
    model = base_model(study.base)
    config = load_config(model)
    base_sha = fingerprint(model, config)
    base = on_meta(model, None if study.task == "image-classification" else _PEFT_TASK[study.task])
    specs, blocks = _resolved(study, model, base)
    study = _with_one_length(study, config, [spec for spec, _, _ in specs])
    splits = split_data(study, folder)
    recipe = _recipe(study, model, base_sha, splits, base)
    resolved = {
        "schema": SCHEMA,
        "study": study.name,
        "title": study.title,
        "question": study.question,
        "metric": study.chosen_metric,
        "reference": study.reference,
        "task": study.task,
        "base": {key: recipe["base"][key] for key in ("id", "sha256", "params_total", "dtype")},
        "data": {"id": study.data, "eval_data": study.eval_data, "test_data": study.test_data, "sha256": splits.sha256},
        "training": study.training.model_dump(),
        "test_blocks": study.test_blocks,
        "costs": study.costs,
        "seeds": study.seeds,
        "tuning": study.tuning.model_dump(),
        "max_hours": study.max_hours,
        "command": command,
        "methods": [_described(study, recipe, spec, role, counts) for spec, role, counts in specs],
        "blocks": blocks,
    }
    return Plan(folder, resolved, recipe)


def _with_one_length(study: Study, config: Any, specs: Sequence[MethodSpec]) -> Study:
    """Blocks as long as every method can take: virtual tokens take room, and all methods see the same blocks."""
    if study.task != "causal-lm":
        return study
    reserved = [virtual_tokens(spec.method, spec.host, spec.settings) for spec in specs]
    length = block_length(study.training.seq_len, config, max(reserved, default=0))
    return study.model_copy(update={"training": study.training.model_copy(update={"seq_len": length})})


def _check_encoder(study: Study) -> None:
    """BERTScore's encoder, before anything is trained."""
    encoder = study.generation and study.generation.bertscore_model
    if not encoder:
        return
    if not Path(encoder).expanduser().is_dir():
        raise ConfigError(f"generation.bertscore_model: no folder {encoder}; name that of a local encoder, or none")
    if find_spec("bert_score") is None:
        raise ConfigError("generation.bertscore_model needs the package bert-score: pip install bert-score")


_EARLY = ("data", "estimate.json")  # what is there before study.json
_PEFT_TASK = {"causal-lm": "CAUSAL_LM", "text-classification": "SEQ_CLS"}


def _check_folder(study: Study, folder: Path) -> None:
    """Refuse a folder with another study's rows, or this study's on other data or another base."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder for the study")
    file = folder / "study.json"
    if not file.exists():
        is_ours = (folder / "rows" / study.name).is_dir()
        if not is_ours and any(not path.name.startswith(".") and path.name not in _EARLY for path in folder.iterdir()):
            raise ConfigError(f"{folder} is not empty and holds no study; name another folder")
        return
    try:
        found = read_json(file)
        was = {"study": found["study"], "base": found["base"]["id"], "task": found["task"]}
        was |= {key: found["data"][key] for key in ("id", "eval_data", "test_data")}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is damaged ({error}); delete it, and the same command writes it again") from error
    now = {"study": study.name, "base": study.base, "task": study.task}
    now |= {"id": study.data, "eval_data": study.eval_data, "test_data": study.test_data}
    for name, value in now.items():
        if was[name] != value:
            what = "data" if name == "id" else name
            raise ConfigError(f"{folder} holds a study with {what} {was[name]!r}, not {value!r}; name another folder")


def _resolved(study: Study, model: str, base: Any) -> tuple[list[tuple[MethodSpec, str, Counts]], list[dict[str, Any]]]:
    """Every method with its role and counts; and the equal-budget blocks."""
    specs = [(spec, spec.role, count(study, model, spec, spec.settings, base)) for spec in study.methods]
    by_key = {spec.key: counts for spec, _, counts in specs}
    blocks = []
    for block in study.blocks:
        budget = by_key[block.of].trainable
        found = members(study, model, block, budget, base)
        specs += [(member.spec, "equal_budget", member.counts) for member in found]
        entries = [{"key": block.of, "trainable": budget, "ratio": 1.0, "over_budget": False, "ranked": True}]
        blocks.append({"of": block.of, "budget": budget, "members": entries + [_entry(member) for member in found]})
    return specs, blocks


def _entry(member: Member) -> dict[str, Any]:
    return {
        "key": member.spec.key,
        "trainable": member.counts.trainable,
        "ratio": member.ratio,
        "over_budget": member.over_budget,
        "ranked": member.is_ranked,
    }


def _recipe(study: Study, model: str, base_sha: str, splits: Splits, base: Any) -> dict[str, Any]:
    return {
        "base": {
            "id": study.base,
            "path": model,
            "sha256": base_sha,
            "dtype": study.training.dtype,
            "params_total": sum(p.numel() for p in base.parameters()),
        },
        "data": {
            "id": study.data,
            "sha256": splits.sha256,
            "train": str(splits.train),
            "validation": str(splits.validation),
            "test": str(splits.test),
            "general": str(splits.general) if splits.general else None,
        },
        "task": study.task,
        "training": study.training.model_dump(),
        "test_blocks": study.test_blocks,
        "generation": study.generation.model_dump() if study.generation else None,
        "capacity": study.capacity,
        "first_seed": study.seeds[0],
        "reference": next(
            {"method": spec.method, "host": spec.host, "settings": spec.settings}
            for spec in study.methods
            if spec.key == study.reference
        ),
    }


def _described(study: Study, recipe: dict[str, Any], spec: MethodSpec, role: str, counts: Counts) -> dict[str, Any]:
    grid = study.tuning.grid
    rates = [] if spec.method == UNTRAINED else sorted({_rounded(spec.base_rate * study.lr_scale * x) for x in grid})
    return {
        "key": spec.key,
        "label": spec.label or spec.key,
        "role": role,
        "against": spec.against,
        "method": spec.method,
        "host": spec.host,
        "settings": spec.settings,
        "backend": spec.backend,
        "lr_base": spec.base_rate * study.lr_scale,
        "rates": rates,
        "hash": _hash(study, recipe, spec, rates),
        "trainable": counts.trainable,
        "deployed": counts.deployed,
        "note": spec.note,
    }


def _hash(study: Study, recipe: dict[str, Any], spec: MethodSpec, rates: Sequence[float]) -> str:
    """Over all that decides a row but the seed; places on this machine are left out, contents are in."""
    content = {
        "schema": SCHEMA,
        "base": recipe["base"]["sha256"],
        "data": recipe["data"]["sha256"],
        **{key: recipe[key] for key in ("task", "training", "test_blocks", "generation", "capacity")},
        "tuning_seed": study.tuning.seed,
        "method": spec.method,
        "host": spec.host,
        "settings": spec.settings,
        "rates": list(rates),
        **({"backend": spec.backend} if spec.backend else {}),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _is_exact(study: dict[str, Any], method: dict[str, Any]) -> bool:
    """No seed changes a base that is not trained; a classification's new head is drawn from the seed."""
    return method["method"] == UNTRAINED and study["task"] == "causal-lm"


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


def _edge(rate: float | None, rates: Sequence[float]) -> str | None:
    if rate is None or len(rates) < 2:
        return None
    return {rates[0]: "low", rates[-1]: "high"}.get(rate)
