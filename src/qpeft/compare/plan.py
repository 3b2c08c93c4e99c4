"""From a study to its cells: everything resolved, split, hashed and counted before any of them runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from qpeft import methods
from qpeft.compare.budget import Counts, Member, count, members
from qpeft.compare.cell import Cell, Recipe, RecipeBase, RecipeData, Reference
from qpeft.compare.data import Splits, split_data
from qpeft.compare.resolved import (
    STUDY,
    ResolvedBlock,
    ResolvedData,
    ResolvedMember,
    ResolvedMethod,
    ResolvedStudy,
    read_study,
)
from qpeft.compare.rows import SCHEMA, Base, Row, read_rows
from qpeft.compare.study import UNTRAINED, MethodSpec, Study
from qpeft.core.meta_model import on_meta
from qpeft.demo import base_model
from qpeft.errors import ConfigError
from qpeft.training.base_model import block_length, fingerprint, load_config
from qpeft.training.methods import virtual_tokens
from qpeft.training.task_types import TASKS

Rows = Mapping[str, Row]  # by cell_id


@dataclass(frozen=True)
class Plan:
    """The cells of a study in `folder`."""

    folder: Path
    study: ResolvedStudy
    recipe: Recipe  # what all cells share

    def tuning_cells(self) -> list[Cell]:
        """A trial of each learning rate of each method that has several, small methods first."""
        trials = [(method, rate) for method in self._by_size() if len(method.rates) > 1 for rate in method.rates]
        seed = self.study.tuning.seed
        return [self._cell(method, "tuning", f"lr{rate:g}", seed, rate) for method, rate in trials]

    def final_cells(self, rows: Rows) -> list[Cell]:
        """Every method with every seed, seed by seed, at the learning rate with the lowest validation loss in `rows`.

        A method without any successful trial has cells that name it in `impossible`.
        """
        chosen = {method.key: self._chosen(method, rows) for method in self.study.methods}
        return [
            self._cell(method, method.role, f"seed{seed}", seed, *chosen[method.key])
            for seed in self.study.seeds
            for method in self._by_size()
            if seed in self.study.seeds_of(method)
        ]

    def cost_cells(self, rows: Rows) -> list[Cell]:
        """Time and memory of every method, measured alone; none where the study does without."""
        if not self.study.costs:
            return []
        seed = self.study.seeds[0]
        return [
            self._cell(method, "cost", "cost", seed, *self._chosen(method, rows))
            for method in self._by_size()
            if method.method != UNTRAINED
        ]

    def estimate(self) -> dict[str, float]:
        """Hours of each phase (tuning, final, cost) with one worker, from a few timed steps of every method."""
        from qpeft.compare.estimate import estimate_hours

        rows = read_rows(self.folder)
        return estimate_hours(self.tuning_cells(), self.final_cells(rows), self.cost_cells(rows), self.folder)

    def _by_size(self) -> list[ResolvedMethod]:
        return sorted(self.study.methods, key=lambda method: method.trainable)

    def _chosen(self, method: ResolvedMethod, rows: Rows) -> tuple[float | None, str | None]:
        """The learning rate of the method; and why there is none."""
        rates = method.rates
        if len(rates) < 2:
            return (rates[0] if rates else None), None
        trials = {rate: rows.get(self.study.cell_id(method, f"lr{rate:g}")) for rate in rates}
        losses = {rate: row.quality.valid_loss for rate, row in trials.items() if row and row.succeeded}
        known = {rate: loss for rate, loss in losses.items() if loss is not None}
        if not known:
            return None, "no trial of a learning rate succeeded; give the method a lower lr"
        return min(known, key=lambda rate: known[rate]), None

    def _cell(
        self, method: ResolvedMethod, role: str, name: str, seed: int, lr: float | None, impossible: str | None = None
    ) -> Cell:
        return Cell(
            study=self.study.name,
            spec=method,
            role=role,
            name=name,
            seed=seed,
            lr=lr,
            lr_at_edge=_edge(lr, method.rates) if role != "tuning" else None,
            recipe=self.recipe,
            impossible=impossible,
        )


def make_plan(study: Study, folder: Path, command: str = "") -> Plan:
    """Resolve the base, split and hash the data, and count every method. A folder in use is not changed.

    Raises InputError, ConfigError or DataError for what cannot be run, before any cell.
    """
    _check_folder(study, folder)
    _check_encoder(study)
    model = base_model(study.base)
    config = load_config(model)
    base_sha = fingerprint(model, config)
    base = on_meta(model, TASKS[study.task].peft_type)
    specs, blocks = _resolved(study, model, base)
    study = _with_one_length(study, config, [spec for spec, _, _ in specs])
    splits = split_data(study, folder)
    recipe = _recipe(study, model, base_sha, splits, base)
    resolved = ResolvedStudy(
        name=study.name,
        title=study.title,
        question=study.question,
        metric=study.chosen_metric,
        reference=study.reference,
        task=study.task,
        base=Base(**{name: getattr(recipe.base, name) for name in ("id", "sha256", "params_total", "dtype")}),
        data=ResolvedData(id=study.data, eval_data=study.eval_data, test_data=study.test_data, sha256=splits.sha256),
        training=study.training,
        test_blocks=study.test_blocks,
        costs=study.costs,
        seeds=study.seeds,
        tuning=study.tuning,
        max_hours=study.max_hours,
        command=command,
        methods=[_described(study, recipe, spec, role, counts) for spec, role, counts in specs],
        blocks=blocks,
    )
    return Plan(folder, resolved, recipe)


def _with_one_length(study: Study, config: Any, specs: Sequence[MethodSpec]) -> Study:
    """Blocks as long as every method can take: virtual tokens take room, and all methods see the same blocks."""
    if not study.is_language_model:
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


def _check_folder(study: Study, folder: Path) -> None:
    """Reject a folder with another study's rows, or this study's on other data or another base."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder for the study")
    if not (folder / STUDY).exists():
        is_ours = any(row.study == study.name for row in read_rows(folder).values())
        if not is_ours and any(not path.name.startswith(".") and path.name not in _EARLY for path in folder.iterdir()):
            raise ConfigError(f"{folder} is not empty and holds no study; name another folder")
        return
    found = read_study(folder)
    was = {"study": found.name, "base": found.base.id, "task": found.task, "data": found.data.id}
    was |= {"eval_data": found.data.eval_data, "test_data": found.data.test_data}
    now = {"study": study.name, "base": study.base, "task": study.task, "data": study.data}
    now |= {"eval_data": study.eval_data, "test_data": study.test_data}
    for name, value in now.items():
        if was[name] != value:
            raise ConfigError(f"{folder} holds a study with {name} {was[name]!r}, not {value!r}; name another folder")


def _resolved(study: Study, model: str, base: Any) -> tuple[list[tuple[MethodSpec, str, Counts]], list[ResolvedBlock]]:
    """Every method with its role and counts; and the equal-budget blocks."""
    specs = [(spec, spec.role, count(study, model, spec, spec.settings, base)) for spec in study.methods]
    by_key = {spec.key: counts for spec, _, counts in specs}
    blocks = []
    for block in study.blocks:
        budget = by_key[block.of].trainable
        found = members(study, model, block, budget, base)
        specs += [(member.spec, "equal_budget", member.counts) for member in found]
        first = ResolvedMember(key=block.of, trainable=budget, ratio=1.0, over_budget=False, ranked=True)
        blocks.append(ResolvedBlock(of=block.of, budget=budget, members=[first, *map(_member, found)]))
    return specs, blocks


def _member(member: Member) -> ResolvedMember:
    return ResolvedMember(
        key=member.spec.key,
        trainable=member.counts.trainable,
        ratio=member.ratio,
        over_budget=member.over_budget,
        ranked=member.is_ranked,
    )


def _recipe(study: Study, model: str, base_sha: str, splits: Splits, base: Any) -> Recipe:
    reference = next(spec for spec in study.methods if spec.key == study.reference)
    return Recipe(
        base=RecipeBase(
            id=study.base,
            path=model,
            sha256=base_sha,
            dtype=study.training.dtype,
            params_total=sum(p.numel() for p in base.parameters()),
        ),
        data=RecipeData(
            id=study.data,
            sha256=splits.sha256,
            train=str(splits.train),
            validation=str(splits.validation),
            test=str(splits.test),
            general=str(splits.general) if splits.general else None,
        ),
        task=study.task,
        training=study.training,
        test_blocks=study.test_blocks,
        generation=study.generation,
        capacity=study.capacity,
        first_seed=study.seeds[0],
        reference=Reference(method=reference.method, host=reference.host, settings=reference.settings),
    )


def _described(study: Study, recipe: Recipe, spec: MethodSpec, role: str, counts: Counts) -> ResolvedMethod:
    grid = study.tuning.grid
    rates = [] if spec.method == UNTRAINED else sorted({_rounded(spec.base_rate * study.lr_scale * x) for x in grid})
    return ResolvedMethod(
        key=spec.key,
        label=spec.label or spec.key,
        role=role,
        against=spec.against,
        method=spec.method,
        host=spec.host,
        settings=spec.settings,
        backend=spec.backend,
        lr_base=spec.base_rate * study.lr_scale,
        rates=rates,
        hash=_hash(study, recipe, spec, rates),
        trainable=counts.trainable,
        deployed=counts.deployed,
        note=spec.note,
    )


def _hash(study: Study, recipe: Recipe, spec: MethodSpec, rates: Sequence[float]) -> str:
    """Over all that decides a row but the seed. Paths on this machine are left out, contents are in."""
    shared = recipe.model_dump(include={"task", "training", "test_blocks", "generation", "capacity"})
    content = {
        "schema": SCHEMA,
        "base": recipe.base.sha256,
        "data": recipe.data.sha256,
        **shared,
        "tuning_seed": study.tuning.seed,
        "method": spec.method,
        "host": spec.host,
        "settings": spec.settings,
        "rates": list(rates),
        **({"backend": spec.backend} if spec.backend else {}),
        **({"method_sha256": sha} if (sha := methods.file_sha256(spec.method)) else {}),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


def _edge(rate: float | None, rates: Sequence[float]) -> Literal["low", "high"] | None:
    if rate is None or len(rates) < 2:
        return None
    return "low" if rate == rates[0] else "high" if rate == rates[-1] else None
