"""From a study to its cells. Methods are counted and data are split and hashed before any cell runs."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qpeft import methods
from qpeft.compare.base_names import fill_names
from qpeft.compare.budget import Counted, Host, count, fill_block
from qpeft.compare.cell import Cell, Setup, SplitData
from qpeft.compare.data import TEXT_PAIR, split_data
from qpeft.compare.rate_search import RateSearch
from qpeft.compare.resolved import (
    STUDY,
    ResolvedBlock,
    ResolvedData,
    ResolvedMethod,
    ResolvedStudy,
    read_study,
)
from qpeft.compare.rows import SCHEMA, Base, Row, read_rows
from qpeft.compare.smoke import STAND_IN
from qpeft.compare.study import MethodSpec, Published, Study
from qpeft.core.base_model import block_length, fingerprint, load_config, tokenizer_fingerprint
from qpeft.core.meta_model import on_meta
from qpeft.demo import base_model
from qpeft.errors import ConfigError, DataWarning
from qpeft.files import output_folder
from qpeft.methods import Trains
from qpeft.metrics.encoders import encoder_layers
from qpeft.metrics.overlap import meteor_program
from qpeft.training.methods import virtual_tokens
from qpeft.training.settings import TrainSettings
from qpeft.training.sources import content_hash
from qpeft.training.task_types import TASKS
from qpeft.training.tasks import task_class
from qpeft.user_files import file_hashes, without_folder, without_folders

Rows = Mapping[str, Row]  # by cell_id

_BYTES_PER_TRAINED = 16  # a value, its gradient and the two moments of Adam in float32

_OF_SPEC = ("key", "against", "method", "host", "settings", "backend", "note")
# in every hash; fields that were added later only where they are not the default, so that earlier rows stay valid
_TRAINING_OF_0_1 = ("steps", "batch_size", "gradient_accumulation_steps", "seq_len", "warmup", "weight_decay")
_TRAINING_OF_0_1 += ("max_grad_norm", "dtype", "eval_every", "eval_blocks", "save_every")
_TRAINING_OF_0_1 += ("text_column", "label_column", "prompt_column", "completion_column")
_GENERATION_OF_0_1 = ("max_new_tokens", "n_prompts", "bertscore_model")
_WRITTEN_BEFORE_STUDY = ("data", "estimate.json", STAND_IN)


@dataclass(frozen=True)
class Plan:
    """The cells of a study in `folder`."""

    folder: Path
    study: ResolvedStudy
    setup: Setup  # what all cells share

    def claim(self) -> None:
        """Write study.json. Raises ConfigError if another study has used the folder since the plan was made."""
        _check_folder(self.study, self.folder)
        _check_results(self)
        self.study.write(self.folder)

    def tuning_cells(self, rows: Rows) -> list[Cell]:
        """The trials of learning rates that `rows` make necessary, for methods with several; small methods first."""
        return [
            self._cell(method, "tuning", f"lr{rate:g}", self.study.tuning.seed, search, rate)
            for method, search in self._searches(rows)
            for rate in search.rates
        ]

    def most_tuning_cells(self, rows: Rows) -> int:
        """How many trials of learning rates there are in the end, at most."""
        return sum(search.n_possible for _, search in self._searches(rows))

    def final_cells(self, rows: Rows) -> list[Cell]:
        """Every method with every seed, seed by seed, at the learning rate with the lowest validation loss in `rows`.

        The cells of a method without a successful trial have the reason in `impossible`.
        """
        searches = {method.key: self.study.search(method, rows) for method in self.study.methods}
        chosen = {method.key: self._chosen(method, searches[method.key], rows) for method in self.study.methods}
        return [
            self._cell(method, method.role, f"seed{seed}", seed, searches[method.key], *chosen[method.key])
            for seed in self.study.seeds
            for method in self._by_size()
            if seed in self.study.seeds_of(method)
        ]

    def cost_cells(self, rows: Rows) -> list[Cell]:
        """A measurement of time and memory for every trained method; none if the study has `costs: false`."""
        seed = self.study.seeds[0]
        measured = [method for method in self._by_size() if self.study.costs and method.is_trained]
        searches = [(method, self.study.search(method, rows)) for method in measured]
        return [
            self._cell(method, "cost", "cost", seed, search, *self._chosen(method, search, rows))
            for method, search in searches
        ]

    def estimate(self, examples_per_second: float | None = None) -> dict[str, float]:
        """Hours of each phase (tuning, final, cost) with one worker, at most, from a few timed steps of every method.

        With `examples_per_second`, the speed of training, nothing is timed.
        """
        from qpeft.compare.estimate import estimate_hours

        rows = read_rows(self.folder)
        tuning = self.tuning_cells(rows)
        share = self.most_tuning_cells(rows) / len(tuning) if tuning else 1.0
        phases = tuning, self.final_cells(rows), self.cost_cells(rows)
        hours = estimate_hours(*phases, self.folder, examples_per_second)
        return hours | {"tuning": share * hours["tuning"]}

    def least_memory(self) -> int:
        """Bytes of the weights, and of gradients and Adam's states for the method with the most trainable parameters.

        Activations need more memory in addition.
        """
        base = self.study.base
        weights = base.params_total * (2 if base.dtype == "bfloat16" else 4)
        return weights + _BYTES_PER_TRAINED * max(method.trainable for method in self.study.methods)

    def _by_size(self) -> list[ResolvedMethod]:
        return sorted(self.study.methods, key=lambda method: method.trainable)

    def _searches(self, rows: Rows) -> list[tuple[ResolvedMethod, RateSearch]]:
        """Of the methods that have several learning rates."""
        return [(method, self.study.search(method, rows)) for method in self._by_size() if len(method.rates) > 1]

    def _chosen(self, method: ResolvedMethod, search: RateSearch, rows: Rows) -> tuple[float | None, str | None]:
        """The learning rate of the method, or the reason why there is none."""
        if len(method.rates) < 2:
            return (method.rates[0] if method.is_trained else None), None
        if search.best is None:
            trials = [self.study.trial_of(method, rows, rate) for rate in search.rates]
            failed = next((row for row in trials if row and row.status not in ("success", "diverged")), None)
            remedy = "give the method a lower lr" if failed is None else f"one {failed.status}: {failed.error_msg}"
            return None, f"no trial of a learning rate succeeded; {remedy}"
        return search.best, None

    def _cell(
        self,
        method: ResolvedMethod,
        role: str,
        name: str,
        seed: int,
        search: RateSearch,
        lr: float | None,
        impossible: str | None = None,
    ) -> Cell:
        return Cell(
            study=self.study.name,
            spec=method,
            role=role,
            name=name,
            seed=seed,
            lr=lr,
            lr_grid=search.rates,
            lr_at_edge=search.edge if role != "tuning" and lr is not None else None,
            setup=self.setup,
            impossible=impossible,
        )


def make_plan(study: Study, folder: Path, command: str = "", trust_remote_code: bool = False) -> Plan:
    """Resolve the base, split and hash the data, and count every method. The rows of a folder in use stay.

    Raises InputError, ConfigError or DataError for a study that cannot run.
    """
    _check_folder(study, folder)
    _check_scores(study)
    model = base_model(study.base)
    config = load_config(model, trust_remote_code)
    base_sha = fingerprint(model, config)
    base = host_of(study, model, trust_remote_code)
    study = _with_names(study, base)
    counted, blocks = _count_methods(study, base)
    study = _with_common_length(study, config, [one.spec for one in counted])
    data = split_data(study, folder)
    study = _with_steps(study, model, data, trust_remote_code)
    setup = Setup(
        model=model,
        base=Base(
            id=study.base,
            sha256=base_sha,
            params_total=sum(p.numel() for p in base.model.parameters()),
            dtype=study.training.dtype,
            tokenizer_sha256=tokenizer_fingerprint(model, config),
        ),
        data=data,
        task=study.task,
        training=study.training,
        test_blocks=study.test_blocks,
        generation=study.generation,
        capacity=study.capacity,
        first_seed=study.seeds[0],
        trust_remote_code=trust_remote_code,
        reference=next(spec for spec in study.methods if spec.key == study.reference),
    )
    _check_tokenizer(setup.base, folder)
    plan = Plan(folder, _resolve(study, setup, counted, blocks, command), setup)
    _check_results(plan)
    return plan


def _check_folder(study: Study | ResolvedStudy, folder: Path) -> None:
    """Reject a folder with another study's rows."""
    output_folder(folder)
    if not folder.exists():
        return
    if not (folder / STUDY).exists():
        is_ours = any(row.study == study.name for row in read_rows(folder).values())
        others = [path for path in folder.iterdir() if path.name[0] != "." and path.name not in _WRITTEN_BEFORE_STUDY]
        if others and not is_ours:
            raise ConfigError(f"{folder} is not empty and holds no study; name another folder")
        return
    found = read_study(folder)
    for name, was, now in (("study", found.name, study.name), ("task", found.task, study.task)):
        if was != now:
            raise ConfigError(f"{folder} holds a study with {name} {was!r}, not {now!r}; name another folder")


def _check_results(plan: Plan) -> None:
    """Reject a folder with results on other data or another base, or of other training.

    They would stay in the folder, but not in its report. Methods and seeds may be added, removed or changed.
    """
    if not (plan.folder / STUDY).exists() or not any(row.succeeded for row in read_rows(plan.folder).values()):
        return
    found = read_study(plan.folder)
    was, now = _shared(found), _shared(plan.study)
    changed = [f"{name} {was[name]}, not {now[name]}" for name in now if was[name] not in ("", now[name])]
    rates = {method.key: method.rates for method in found.methods if method.is_trained}
    common = [method.rates == rates[method.key] for method in plan.study.methods if method.key in rates]
    if common and not any(common):
        changed.append("other learning rates of all methods")
    if changed:
        raise ConfigError(
            f"{plan.folder} holds results with {'; '.join(changed)}. Use the same, name another folder, or remove this"
        )


def _shared(study: ResolvedStudy) -> dict[str, Any]:
    """What all cells have in common; if it changes, no row is of use."""
    # the beginnings of the hashes
    contents: dict[str, Any] = {"base": study.base.sha256[:19], "data": study.data.sha256[:12]}
    training = {f"training.{name}": value for name, value in study.training.model_dump().items()}
    tuning = {f"tuning.{name}": value for name, value in study.tuning.model_dump().items()}
    return contents | training | tuning | {"test_blocks": study.test_blocks}


def _check_tokenizer(base: Base, folder: Path) -> None:
    """Refuse a folder whose study had another tokenizer or image processor; qpeft 0.1 did not record it."""
    if not (folder / STUDY).exists():
        return
    if read_study(folder).base.tokenizer_sha256 not in (None, base.tokenizer_sha256):
        raise ConfigError(
            f"{folder} holds a study with other tokenizer or image processor files of the base model; restore them, or "
            "name another folder"
        )


def _check_scores(study: Study) -> None:
    if study.generation and study.generation.meteor:
        meteor_program()
    encoder = study.generation and study.generation.bertscore_model
    if not encoder:
        return
    if not Path(encoder).expanduser().is_dir():
        raise ConfigError(f"generation.bertscore_model: no folder {encoder}; name the folder of a local encoder")
    if find_spec("bert_score") is None:
        raise ConfigError("generation.bertscore_model needs the package bert-score: pip install 'qpeft[bertscore]'")
    encoder_layers(Path(encoder).expanduser())


def host_of(study: Study, model: str, trust_remote_code: bool) -> Host:
    """The study's base on the meta device."""
    if study.is_language_model:
        return Host(on_meta(model, TASKS[study.task].peft_type, trust_remote_code))
    from qpeft.training.tasks.classifier import classifier_on_meta

    n_classes = None if (glue := study.glue) is None else len(glue.classes)
    n_outputs = 1 if TASKS[study.task].is_regression else n_classes
    found = classifier_on_meta(model, study.task, n_outputs, trust_remote_code)
    return Host(found.model, found.trained)


def _with_names(study: Study, base: Host) -> Study:
    """The study with the names of the base's modules in the settings of all methods."""

    def named(spec: Any) -> Any:
        return spec.model_copy(update={"settings": fill_names(spec.settings, base.model)})

    blocks = [block.model_copy(update={"methods": [*map(named, block.methods)]}) for block in study.blocks]
    return study.model_copy(update={"methods": [*map(named, study.methods)], "blocks": blocks})


def _count_methods(study: Study, base: Host) -> tuple[list[Counted], list[ResolvedBlock]]:
    """Every method with its role and counts, those of equal-budget blocks included; and the blocks."""
    counted = [Counted(spec, spec.role, *count(study, base, spec, spec.settings)) for spec in study.methods]
    trainable = {one.spec.key: one.trainable for one in counted}
    filled = [fill_block(study, base, block, trainable[block.of]) for block in study.blocks]
    return counted + [one for _, members in filled for one in members], [block for block, _ in filled]


def _with_common_length(study: Study, config: Any, specs: Sequence[MethodSpec]) -> Study:
    """The study with a `seq_len` for which every method has room, so that all methods see equal blocks."""
    if not study.is_language_model:
        return study
    reserved = [virtual_tokens(spec.method, spec.host, spec.settings) for spec in specs]
    length = block_length(study.training.seq_len, config, max(reserved, default=0))
    return study.model_copy(update={"training": study.training.model_copy(update={"seq_len": length})})


def _with_steps(study: Study, model: str, data: SplitData, trust_remote_code: bool) -> Study:
    """The study with the steps of its epochs, for which its training data are read."""
    training = study.training
    if training.epochs is None:
        return study
    of_data = ("batch_size", "gradient_accumulation_steps", "seq_len", "separator", "pad_rows")
    run = TrainSettings(
        model=model,
        data=str(data.train),
        eval_data=str(data.validation),
        out="",
        task=study.task,
        text_pair_column=training.text_pair_column and TEXT_PAIR,
        epochs=training.epochs,
        trust_remote_code=trust_remote_code,
        **{name: getattr(training, name) for name in of_data},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # each row reports what is left out
        steps = run.with_steps(len(task_class(study.task)(run).train)).n_steps
    return study.model_copy(update={"training": training.model_copy(update={"steps": steps})})


def _resolve(
    study: Study, setup: Setup, counted: Sequence[Counted], blocks: list[ResolvedBlock], command: str
) -> ResolvedStudy:
    names = {name: getattr(study, name) for name in ("eval_data", "test_data")}
    data = ResolvedData(id=study.data, **names, sha256=setup.data.sha256, notes=setup.data.notes)
    same = ("name", "title", "question", "reference", "task", "training", "test_blocks", "costs", "seeds", "tuning")
    return ResolvedStudy(
        **{name: getattr(study, name) for name in same},
        metric=study.chosen_metric,
        base=setup.base,
        data=data,
        max_hours=study.max_hours,
        command=command,
        methods=[_resolve_method(study, setup, one) for one in counted],
        blocks=blocks,
    )


def _resolve_method(study: Study, setup: Setup, counted: Counted) -> ResolvedMethod:
    spec = counted.spec
    record, middle = methods.named(spec.method), spec.base_rate * study.lr_scale
    rates = sorted({float(f"{middle * factor:.3g}") for factor in study.tuning.grid})
    if record.trains is Trains.NOTHING:
        rates = []
    elif len(rates) < len(study.tuning.grid):
        raise ConfigError(
            f"tuning.grid: {len(study.tuning.grid)} factors give {spec.key} only {len(rates)} learning rates, "
            "which are rounded to three digits; give factors that differ"
        )
    return ResolvedMethod(
        **{name: getattr(spec, name) for name in _OF_SPEC},
        label=spec.label or spec.key,
        published=[value for value in spec.published if _is_for(value, study)],
        role=counted.role,
        kind=record.kind_with(spec.settings),
        prunes_ranks=record.prunes_ranks,
        report_note=record.report_note,
        lr_base=middle,
        rates=rates,
        hash=config_hash(study, setup, spec, rates),
        trainable=counted.trainable,
        deployed=counted.deployed,
    )


def _is_for(value: Published, study: Study) -> bool:
    """Whether a published value is for the study's data; local files of a task of GLUE count as the task."""
    name = study.data.partition(":")[0] if study.glue else study.data
    return value.data in (None, study.data, name)


def config_hash(study: Study, setup: Setup, spec: MethodSpec, rates: Sequence[float]) -> str:
    """Hash of everything that determines a row, except for the seed. It covers contents of files, not their paths."""
    shared = setup.model_dump(include={"task", "training", "test_blocks", "generation", "capacity"})
    for name, of_0_1 in (("training", _TRAINING_OF_0_1), ("generation", _GENERATION_OF_0_1)):
        if part := getattr(setup, name):
            usual = type(part)().model_dump(exclude={*of_0_1})
            shared[name] = {k: v for k, v in shared[name].items() if k not in usual or v != usual[k]}
    if setup.generation and (encoder := setup.generation.bertscore_model):
        shared["generation"]["bertscore_model"] = content_hash(encoder)
    files = file_hashes(spec.method, spec.settings, spec.backend)
    content = {
        "schema": SCHEMA,
        "base": setup.base.sha256,
        "data": setup.data.sha256,
        **shared,
        "tuning_seed": study.tuning.seed,
        "method": without_folder(spec.method),
        **({"revision": revision} if (revision := methods.named(spec.method).revision) > 1 else {}),
        "host": spec.host,
        "settings": without_folders(spec.settings),
        "rates": list(rates),
        **({"backend": without_folders(spec.backend)} if spec.backend else {}),
        **{f"{part}_sha256": sha for part, sha in files.items()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
