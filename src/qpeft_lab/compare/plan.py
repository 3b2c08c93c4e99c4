"""From a study to its cells. Methods are counted and data are split and hashed before any cell
runs.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from qpeft import methods
from qpeft.core.targets import last_norm, norm_targets
from qpeft.errors import ConfigError, DataWarning
from qpeft.files import write_json
from qpeft.methods import Trains
from qpeft.methods.plan import plan as count_parameters
from qpeft_lab.base_model import block_length, fingerprint, load_config
from qpeft_lab.compare.cell import Cell, Setup
from qpeft_lab.compare.data import on_parts, split_data
from qpeft_lab.compare.rate_search import RateSearch
from qpeft_lab.compare.rows import ROWS, Row, read_rows, succeeded
from qpeft_lab.compare.smoke import STAND_IN
from qpeft_lab.compare.study import (
    STUDY,
    Method,
    PlannedMethod,
    PlannedStudy,
    Study,
    errors_of,
    rates_of,
    read_study,
)
from qpeft_lab.data.folders import content_hash
from qpeft_lab.data.glue import PREFIX as GLUE
from qpeft_lab.data.text import is_template_file, read_template
from qpeft_lab.demo import base_model
from qpeft_lab.files import output_file, sealed
from qpeft_lab.method_records import UNTRAINED
from qpeft_lab.metrics.texts import encoder_layers
from qpeft_lab.settings import RunSettings, SharedSettings
from qpeft_lab.training.classifier import base_on_meta
from qpeft_lab.training.methods import build_configs, virtual_tokens
from qpeft_lab.training.outputs import count_trainable
from qpeft_lab.training.tasks import TASK_CLASSES
from qpeft_lab.user_files import circuit_hashes, file_hashes, without_folders

Rows = Mapping[str, Row]  # by cell_id
Host = tuple[nn.Module, Sequence[str]]

# in the settings of a study: replaced by the size of another method, and by modules of the base
BUDGET = "@budget"
_MODULES: dict[str, Callable[[nn.Module], Any]] = {
    "@norms": norm_targets,
    "@last-norm": lambda base: [last_norm(base)],
}
_BY_CONTENT = ("model", "data", "eval_data")  # identified by their hashes
_WRITTEN_BEFORE_STUDY = ("data", STAND_IN)


@dataclass(frozen=True)
class Plan:
    """The cells of a study in `folder`."""

    folder: Path
    study: PlannedStudy
    setup: Setup  # what all cells share
    own_files: Sequence[str] = ()  # of the caller, who may have written them to the folder before

    def claim(self) -> None:
        """Write study.json. Raises ConfigError if another study has used the folder since the plan
        was made.
        """
        _check_folder(self.study, self.folder, self.own_files)
        write_json(self.folder / STUDY, sealed(self.study.model_dump()))

    def tuning_cells(self, rows: Rows) -> list[Cell]:
        """The trials of learning rates that `rows` make necessary, for methods with several; small
        methods first.
        """
        return [
            self._cell(method, "tuning", f"lr{rate:g}", self.study.tuning.seed, rate)
            for method, search in self._searches(rows)
            if len(method.rates) > 1
            for rate in search.rates
        ]

    def final_cells(self, rows: Rows) -> list[Cell]:
        """Every method with every seed, seed by seed, at the learning rate with the lowest
        validation loss in `rows`.

        If no trial succeeded, it is the lowest one.
        """
        searches = self._searches(rows)
        return [
            self._cell(method, method.role, f"seed{seed}", seed, search.chosen)
            for seed in self.study.seeds
            for method, search in searches
            if seed == self.study.seeds[0] or not self.study.is_deterministic(method)
        ]

    def cost_cells(self, rows: Rows) -> list[Cell]:
        """A measurement of time and memory for every trained method; none if the study has `costs:
        false`.
        """
        return [
            self._cell(method, "cost", "cost", self.study.seeds[0], search.chosen)
            for method, search in self._searches(rows)
            if self.study.costs and method.rates
        ]

    def cells(self, rows: Rows) -> list[Cell]:
        return [
            *self.tuning_cells(rows),
            *self.final_cells(rows),
            *self.cost_cells(rows),
        ]

    def _searches(self, rows: Rows) -> list[tuple[PlannedMethod, RateSearch]]:
        """Small methods first."""
        by_size = sorted(self.study.methods, key=lambda method: method.trainable)
        return [(method, self.study.search(method, rows)) for method in by_size]

    def _cell(
        self, method: PlannedMethod, role: str, name: str, seed: int, lr: float | None
    ) -> Cell:
        return Cell(self.study.name, method, role, name, seed, lr, self.setup)


def make_plan(
    study: Study,
    folder: Path,
    command: str = "",
    trust_remote_code: bool = False,
    own_files: Sequence[str] = (),
) -> Plan:
    """Resolve the base, split and hash the data, and count every method. The rows of a folder in
    use stay.

    `study` is one of `load_study`, which has checked it. A new folder may contain `own_files`, by
    name.

    Raises InputError, ConfigError or DataError for a study that cannot run.
    """
    _check_folder(study, folder, own_files)
    if study.generation and (encoder := study.generation.bertscore_model):
        encoder_layers(Path(encoder).expanduser())
    model = base_model(study.run.model)
    config = load_config(model, trust_remote_code)
    host = host_of(study, model, trust_remote_code)
    methods_at_size = counted(study, host)
    run = _run_of(study, model, config, methods_at_size, trust_remote_code)
    parts, data_sha256, notes = split_data(study, folder)
    run = replace(run, data=str(parts["train"]), eval_data=str(parts["validation"]))
    if run.epochs is not None:  # their steps depend on the training data
        # each row reports what is left out
        with warnings.catch_warnings(action="ignore", category=DataWarning):
            run = run.with_steps(len(TASK_CLASSES[run.task](run).train))
    hashes: dict[str, Any] = {"base_sha256": fingerprint(model, config), "data_sha256": data_sha256}
    shared = _content(study, run, hashes)
    n_base = sum(p.numel() for p in host[0].parameters())
    planned = PlannedStudy(
        **study.model_dump(exclude={"methods", "run"}),
        **hashes,
        run=replace(study.run, steps=run.n_steps, epochs=None, seq_len=run.seq_len),
        params_total=n_base,
        data_notes=notes,
        command=command,
        methods=[_planned(study, method, shared, n_base) for method in methods_at_size],
    )
    _check_results(planned, folder)
    reference = next(method for method in planned.methods if method.key == study.reference)
    hidden_states = folder / "work" / "hidden_states" if study.keep_hidden_states else None
    setup = Setup(
        run,
        parts["test"],
        study.test_blocks,
        study.generation,
        reference,
        hashes["base_sha256"],
        hidden_states,
    )
    return Plan(folder, planned, setup, own_files)


def host_of(study: Study, model: str, trust_remote_code: bool) -> Host:
    """The study's base on the meta device, and the modules of its classification head, which every
    method trains.
    """
    n_classes = len(study.run.glue.classes) if study.run.glue else None
    return base_on_meta(model, study.run.task, trust_remote_code, n_classes)


def count(study: Study, host: Host, method: Method, settings: dict[str, Any]) -> tuple[int, int]:
    """Trainable and deployed parameters of a method, without those of the head. Raises ConfigError."""
    base, head = host
    run = study.run_of(method, settings)
    in_head = count_trainable(base, head)
    trains = run.record.trains
    if trains is not Trains.ADAPTER:
        total = count_trainable(base) - in_head if trains is Trains.MODEL else 0
        return total, total
    with errors_of(f"method {method.key}"):
        planned = count_parameters(base, *build_configs(run, head))
    return planned.trainable - in_head, planned.deployed - in_head


def counted(study: Study, host: Host) -> list[PlannedMethod]:
    """Every method with its counts. Names of modules are those of the base."""
    planned: dict[str, PlannedMethod] = {}
    # the methods whose size others have come first
    for method in sorted(study.methods, key=lambda method: method.at_size_of is not None):
        budget = planned[method.at_size_of].trainable if method.at_size_of else None
        planned[method.key] = _sized(study, host, method, budget)
    return [planned[method.key] for method in study.methods]


def _sized(study: Study, host: Host, method: Method, budget: int | None = None) -> PlannedMethod:
    """The method with its counts, at its largest size of at most `budget` trainable parameters, or
    at its smallest.

    Learning rates and hash follow when the data are known. Raises ConfigError for a budget of 0.
    """
    if budget == 0:
        raise ConfigError(
            f"method {method.key}: {method.at_size_of} trains no parameters; name another"
            " at_size_of"
        )
    fixed: dict[str, Any] = {}
    for name, value in method.settings.items():
        stands_for = _MODULES.get(str(value))
        if stands_for is not None:
            value = stands_for(host[0])
        fixed[name] = budget if value == BUDGET else value
    largest = None
    for value in method.values or [None]:
        settings = fixed if value is None else {**fixed, str(method.vary): value}
        label = (method.label or method.key) + ("" if value is None else f", {method.vary}={value}")
        trainable, deployed = count(study, host, method, settings)
        if largest is not None and budget is not None and trainable > budget:
            break
        changes = {
            "label": label,
            "settings": settings,
            "vary": None,
            "values": [],
        }
        counts = {"hash": "", "trainable": trainable, "deployed": deployed}
        largest = PlannedMethod.model_validate(method.model_dump() | changes | counts)
    assert largest is not None  # there is at least one size
    return largest


def _run_of(
    study: Study, model: str, config: Any, drafts: Sequence[PlannedMethod], trust_remote_code: bool
) -> RunSettings:
    """What the runs of all methods share: the same blocks of text, for which every method has room."""
    seq_len = study.run.seq_len
    if study.run.is_language_model:
        reserved = max(virtual_tokens(study.run_of(draft)) for draft in drafts)
        seq_len = block_length(seq_len, config, reserved)
    run = on_parts(study.run, model=model, data="", seq_len=seq_len)
    return run.with_method(method=UNTRAINED, trust_remote_code=trust_remote_code)


def _content(study: Study, run: RunSettings, hashes: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the rows of all methods depend on, except for the seed; contents of files,
    not their paths.
    """
    generation = asdict(study.generation) if study.generation else {}
    if study.generation and (encoder := study.generation.bertscore_model):
        generation |= {"bertscore_model": content_hash(encoder)}
    settings = {
        f.name: getattr(run, f.name) for f in fields(SharedSettings) if f.name not in _BY_CONTENT
    }
    if is_template_file(run.chat_template):
        settings["chat_template"] = read_template(str(run.chat_template))
    return {
        "base": hashes["base_sha256"],
        "data": hashes["data_sha256"],
        "run": settings,
        "test_blocks": study.test_blocks,
        "generation": generation,
        "tuning_seed": study.tuning.seed,
    }


def _planned(
    study: Study, draft: PlannedMethod, shared: Mapping[str, Any], n_base: int
) -> PlannedMethod:
    record = methods.get(draft.method)
    usual = record.rate_for(study.run.task, n_base).value
    middle = (draft.lr or usual) * study.lr_scale
    rates = rates_of(middle, study.tuning.grid)
    if record.trains is Trains.NOTHING:
        rates = []
    files = file_hashes(draft.method, draft.settings, draft.backend)
    content = {
        **shared,
        "revision": record.revision,
        "rates": rates,
        "method": without_folders(draft.method),
        "host": without_folders(draft.host),
        "settings": without_folders(draft.settings),
        "backend": without_folders(draft.backend),
        **files,
    }
    sha = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    # of GLUE without local files
    name = study.run.data
    data = (None, name, name.partition(":")[0] if name.startswith(GLUE) else name)
    return draft.model_copy(
        update={
            "lr": middle,
            "rates": rates,
            "hash": sha[:12],
            "files": files | circuit_hashes(draft.settings),
            "kind": record.kind_with(draft.settings),
            "published": [value for value in draft.published if value.data in data],
        }
    )


def _check_folder(study: Study | PlannedStudy, folder: Path, own_files: Sequence[str] = ()) -> None:
    """Reject a folder with another study's rows."""
    output_file(folder, is_folder=True)
    if not folder.exists():
        return
    if (folder / STUDY).exists():
        if (name := read_study(folder).name) != study.name:
            raise ConfigError(
                f"{folder} holds the study {name!r}, not {study.name!r}; name another folder"
            )
        return
    expected = {*_WRITTEN_BEFORE_STUDY, *own_files}
    has_others = any(
        not path.name.startswith(".") and path.name not in expected for path in folder.iterdir()
    )
    if has_others and not (folder / ROWS).exists():
        raise ConfigError(f"{folder} is not empty and holds no study; name another folder")


def _check_results(study: PlannedStudy, folder: Path) -> None:
    """Reject a folder with results of which none would stay in the report, or with those of a circuit
    whose gates changed although its file did not. Methods and seeds may change.
    """
    before = read_study(folder).methods if (folder / STUDY).exists() else []
    gates = {method.hash: method.files.get("gates") for method in before}
    for method in study.methods:
        if gates.get(method.hash) not in (None, method.files.get("gates")):
            raise ConfigError(
                f"the gates of {method.settings['ansatz']} are others than before, although its file is"
                f" the same: it reads them elsewhere. Name another folder than {folder}"
            )
    hashes = {row["hash"] for row in read_rows(folder).values() if succeeded(row)}
    if hashes and not hashes & {method.hash for method in study.methods}:
        raise ConfigError(
            f"{folder} holds results of another base, other data or other training. Use the same,"
            " name another folder, or remove this"
        )
