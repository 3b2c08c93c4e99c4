"""`qpeft evaluate`: the score of a base model, and of an adapter on it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from qpeft.backends import BackendSettings
from qpeft.checks import option
from qpeft.errors import ConfigError, DataWarning, InputError
from qpeft_lab.cli.adapters import OptionalAdapter, adapter_config, run_of, template_of
from qpeft_lab.cli.command import command
from qpeft_lab.cli.console import Answer, cell, say, stderr, table
from qpeft_lab.cli.options import Fields, flag, needed
from qpeft_lab.data.folders import content_hash
from qpeft_lab.data.glue import find_glue
from qpeft_lab.data.names import parse_source, rows_of
from qpeft_lab.data.sources import has_validation_split, spread
from qpeft_lab.data.task_types import TASKS
from qpeft_lab.settings import COLUMNS, RunSettings, settings_from
from qpeft_lab.training.generate import Decoding
from qpeft_lab.user_files import file_hashes, without_folders

if TYPE_CHECKING:
    from rich.console import Console

    from qpeft_lab.training.classifier import TaskRecord
    from qpeft_lab.training.measured import MeasuredPoint, MeasuredScores
    from qpeft_lab.training.score import Score

_LENGTHS = ("seq_len", "chat_template")
_OF_RUN = ("task", *_LENGTHS, "pad_rows", "batch_size", "eval_blocks", "dtype", *COLUMNS)
_PANEL = "Generated answers"
_SHOTS = Fields(BackendSettings, "Measured circuits on inputs", leave_out=("shots", "noise"))


@command
def evaluate(
    *,
    data: str = needed("Data to score, in the same formats as for train.", metavar="SOURCE"),
    run: Annotated[dict[str, Any], Fields(RunSettings, only=_OF_RUN)],
    source: OptionalAdapter,
    generate: bool = option(
        False,
        "Generate an answer to each prompt of the data, and score the texts against all answers of"
        " the data: BLEU, chrF, ROUGE.",
        panel=_PANEL,
    ),
    bertscore_model: Path | None = option(
        None,
        "Compute BERTScore as well, with the encoder in this folder; it needs pip install"
        " 'qpeft[bertscore]'.",
        panel=_PANEL,
    ),
    search: Annotated[dict[str, Any], Fields(Decoding, _PANEL)],
    circuits: Annotated[dict[str, Any], _SHOTS],
    shots: list[int] = option(
        list, "Shots of each circuit; several values make a table.", panel=_SHOTS.panel
    ),
    noise: list[float] = option(
        list,
        "Depolarizing noise of each circuit, or on a device of its gates; as --shots.",
        panel=_SHOTS.panel,
    ),
    seed: int = option(0, "Seed of the simulated shots.", at_least=0, panel=_SHOTS.panel),
    seconds_per_circuit: float | None = option(
        None,
        "Time that a device needs for each circuit, for a forecast in hours.",
        above=0,
        panel=_SHOTS.panel,
    ),
) -> Answer:
    """Score a base model, and an adapter on it: perplexity on texts, accuracy of classes,
    correlation of numbers.

    Texts are scored as a whole, in blocks of --seq-len tokens; prompts are not scored. The score
    does not depend on the batch size. Block length and columns are by default those of the
    adapter's run. The accuracy is given with its 95 % confidence interval, MCC and F1; a regression
    has Pearson's and Spearman's correlation. The base alone is scored if it has a head for the same
    classes.

    With --generate, answers to the prompts are generated and scored instead. With --shots, --noise
    or --backend, an adapter with circuits on inputs is scored exactly and, after a forecast of
    their number, with measured circuits, at each combination of the values. Answers of a device are
    kept in the adapter's folder, in measured: run the same command again to resume.

    Examples:

      qpeft evaluate --adapter run --data text.txt
      qpeft evaluate --model gpt2 --seq-len 1024 \\
          --data Salesforce/wikitext:wikitext-2-raw-v1:test
      qpeft evaluate --adapter run --data e2e.csv --generate --num-beams 10
      qpeft evaluate --adapter run --data text.txt --shots 64,1024 --noise 0,0.01
    """
    trained = _trained(source)
    settings = _settings(data, run, seed, source, trained)
    settings.check()
    is_measured = not generate and bool(shots or noise or "backend" in circuits)
    if trained.folder is None or not is_measured:
        of_circuits = {
            "shots": shots,
            "noise": noise,
            **circuits,
            "seed": seed,
            "seconds_per_circuit": seconds_per_circuit,
        }
        _refuse_unused(
            of_circuits,
            "needs --adapter, one of --shots, --noise and --backend, and no --generate",
        )
    if not generate:
        of_answers = {**dict.fromkeys(search, True), "bertscore_model": bertscore_model}
        _refuse_unused(of_answers, "is for generated answers; add --generate, or leave it out")
    else:
        of_texts = {name: name in run for name in ("seq_len", "pad_rows")}
        _refuse_unused(of_texts, "is for scored texts; leave it out with --generate")
    for name in ("dtype", "load_in_4bit", "pad_rows"):
        used = getattr(settings, name)
        in_run = trained.run.get(name, used)
        if name not in run and in_run != used:
            warnings.warn(
                f"the run had {name}={in_run}; it is scored with {name}={used}", stacklevel=2
            )
    if _are_training_data(settings, trained):
        warnings.warn(
            f"{data} are the training data of {source.adapter}: most were learned", stacklevel=2
        )

    if generate:
        return _score_answers(settings, trained, Decoding(**search), bertscore_model)
    measure = None
    if trained.folder is not None and is_measured:
        points = _points(circuits, shots, noise)
        measure = partial(_measured, settings, trained.folder, points, seconds_per_circuit)
    return _score_task(settings, trained, measure)


class Trained(NamedTuple):
    """What is scored next to the base; empty without an adapter."""

    folder: Path | None  # of the adapter
    frames: Path | None  # its frame file, if it is not next to it
    run: dict[str, Any]  # the fields of its training run, if it is in a run folder
    hashes: dict[str, str]  # of the files of this run
    record: TaskRecord | None  # the classes, of a classification


def _trained(source: Any) -> Trained:
    """The adapter that the options name."""
    from qpeft_lab.training.classifier import read_record

    folder = source.find_given()
    if folder is None:
        return Trained(None, None, {}, {}, None)
    run = run_of(folder, with_checkpoints=True)
    settings, hashes = (None, {}) if run is None else run.recorded()
    fields = {} if settings is None else asdict(settings)
    if (template := template_of(folder, run)) is not None:
        fields["chat_template"] = template
    return Trained(folder, source.frames, fields, hashes, read_record(folder))


def _settings(
    data: str, given: dict[str, Any], seed: int, source: Any, trained: Trained
) -> RunSettings:
    """The settings of the evaluation: those given, then those of the adapter's run.

    Raises ConfigError if another task is given than that of the adapter.
    """
    record = trained.record
    if record is not None and given.get("task", record.task) != record.task:
        raise ConfigError(
            f"{trained.folder} was trained for task {record.task}, not {given['task']}; leave out"
            " --task"
        )
    # GLUE's tasks have columns of their own
    kept = _LENGTHS if find_glue(data) else (*_LENGTHS, *COLUMNS)
    values: dict[str, Any] = {"eval_blocks": 0}
    values |= {name: value for name, value in trained.run.items() if name in kept}
    values |= given
    if record is not None:
        values["task"] = record.task
    values |= {
        "model": source.base(trained.folder),
        "data": data,
        "out": "",
        "seed": seed,
        "trust_remote_code": source.trust_remote_code,
    }
    return settings_from(RunSettings, values)


def _refuse_unused(options: dict[str, Any], reason: str) -> None:
    """Raise InputError for the first of these options that was given."""
    for name, value in options.items():
        if value:
            raise InputError(f"{flag(name)} {reason}")


def _are_training_data(settings: RunSettings, trained: Trained) -> bool:
    """Whether the data to score are those of the adapter's run, without rows held out for scores."""
    learned = trained.run.get("data")
    if learned is None:
        return False
    has_images = TASKS[settings.task].has_images
    source, of_run = parse_source(settings.data), parse_source(learned)
    if not has_images and source.is_local and of_run.is_local and of_run.is_whole:
        file, folder = (Path(name).expanduser().resolve() for name in (source.name, of_run.name))
        # a file of the folder that was learned as a whole
        if of_run.glue is None and file.is_file() and file.parent == folder:
            return True
    evaluated = rows_of(settings.data, content_hash(settings.data))
    if evaluated != rows_of(learned, trained.hashes.get("data")):
        return False
    return not has_validation_split(settings.data, has_images)


def _points(
    circuits: dict[str, Any], shots: list[int], noise: list[float]
) -> list[BackendSettings]:
    """Each number of shots with each noise; a value that is given twice counts once."""
    numbers = dict.fromkeys(shots or [None])
    noises = dict.fromkeys(noise or [0.0])
    return [BackendSettings(**circuits, shots=n, noise=p) for n, p in product(numbers, noises)]


def _measured(
    settings: RunSettings,
    folder: Path,
    points: list[BackendSettings],
    seconds: float | None,
    task: Any,
    model: Any,
) -> MeasuredScores:
    """The exact score, and costs and score at each point, whose jobs are in a folder of its own in
    `folder`.
    """
    from qpeft.core.checkpoint import WEIGHTS
    from qpeft.files import file_hash
    from qpeft_lab.training.measured import measured_scores

    run = (settings.model, settings.dtype, settings.batch_size, settings.seed)
    weights = file_hash(folder / WEIGHTS)
    code = file_hashes(None, {}, asdict(points[0]))  # of a device in a file

    def folder_of(point: BackendSettings) -> Path:
        """Named after everything that determines the circuits and their answers."""
        of_point = without_folders({**asdict(point), "shot_budget": None})
        identity = (run, of_point, task.sha256(), weights, code)
        return folder / "measured" / hashlib.sha256(repr(identity).encode()).hexdigest()[:12]

    def forecast(costs: list[dict[str, Any]]) -> None:
        for cost in costs:
            if seconds is not None:
                n_circuits = cost["circuits"] - cost.get("answered_before", 0)
                cost["hours"] = seconds * n_circuits / 3600
            parts = [f"{cell(value)} {name.replace('_', ' ')}" for name, value in cost.items()]
            say("Forecast:", ", ".join(parts))
        say("Forecast:", f"{sum(cost['shots'] for cost in costs):,} shots in all")

    return measured_scores(
        model, partial(task.score, model), points, settings.seed, forecast, folder_of
    )


def _score_task(
    settings: RunSettings,
    trained: Trained,
    measure: Callable[..., Any] | None,
) -> Answer:
    """The scores of the base, unless its head is for other classes, and of the adapted model; or of
    its circuits.
    """
    from qpeft_lab.base_model import warn_of_own_tokenizer
    from qpeft_lab.training.tasks import TASK_CLASSES

    record = trained.record
    if trained.folder is not None and record is None and not settings.is_language_model:
        raise InputError(
            f"{trained.folder} has no task.json with its classes; give the run folder of a"
            " classification"
        )
    labels = () if record is None else record.labels
    task = TASK_CLASSES[settings.task](settings, _reserved_positions(trained), labels)
    task.evaluation = spread(settings.eval_blocks or 0, list(task.evaluation))
    if not task.kind.has_images:
        warn_of_own_tokenizer(trained.folder, task.processor)

    def score(model: Any, is_base: bool) -> Any:
        if is_base and (measure is not None or task.has_new_head):
            return None
        return task.score(model) if measure is None else measure(task, model)

    scores = _scores(task.load_base(), trained, score)
    points: list[MeasuredPoint] = []
    if measure is not None:
        measured: MeasuredScores = scores["adapted"]
        scores["adapted"] = measured.exact
        points = measured.points
    data = {
        "model": settings.model,
        "adapter": trained.folder,
        "data": settings.data,
        "task": settings.task,
    }
    for who, scored in scores.items():
        data[who] = None if scored is None else scored.to_dict()
    if points:
        data["measured"] = [point.costs | point.score.to_dict() for point in points]
    shown = {who: scored for who, scored in scores.items() if scored is not None}
    for costs, scored in points:
        shown[f"{costs['shots_per_circuit'] or 'no'} shots, noise {costs['noise']:g}"] = scored
    unit = "tokens" if settings.is_language_model else "examples"
    return Answer(data, partial(_show_scores, shown, unit))


def _reserved_positions(trained: Trained) -> int:
    """Positions of the context that a prefix or a prompt occupies, of an adapter or its host."""
    if trained.folder is None:
        return 0
    config = adapter_config(trained.folder, trained.frames)
    host = config.get("host") or {}
    return (config | host).get("num_virtual_tokens") or 0


def _show_scores(scores: dict[str, Score], unit: str, console: Console) -> None:
    first = next(iter(scores.values()))
    rows = [[who, *score.described().values()] for who, score in scores.items()]
    console.print(table(["", *first.described()], rows))
    console.print(f"{first.n_scored:,} {unit}")


def _scores(model: Any, trained: Trained, score: Callable[[Any, bool], Any]) -> dict[str, Any]:
    """The scores of `base`, and of `adapted` if there is an adapter."""
    import torch

    import qpeft

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with stderr().status("Scoring"):
        scores = {"base": score(model.to(device), True)}
        if trained.folder is not None:
            adapted = qpeft.load(model, trained.folder, frames=trained.frames)
            scores["adapted"] = score(adapted.to(device), False)
    return scores


def _score_answers(
    settings: RunSettings, trained: Trained, decoding: Decoding, encoder: Path | None
) -> Answer:
    """The scores of the answers of the base and, with an adapter, of the adapted model."""
    from qpeft_lab.base_model import (
        check_is_causal,
        load_config,
        load_model,
        load_tokenizer,
        warn_of_own_tokenizer,
    )
    from qpeft_lab.data.sources import load_examples
    from qpeft_lab.data.text import answered_prompts, note_unused, read_template
    from qpeft_lab.metrics import score_texts
    from qpeft_lab.metrics.texts import encoder_layers
    from qpeft_lab.training.generate import generate_texts

    if not settings.is_language_model:
        raise InputError(f"--generate is for task causal-lm, not for {settings.task}; leave it out")
    decoding.check()
    if encoder is not None:
        encoder_layers(encoder)
    check_is_causal(load_config(settings.model, settings.trust_remote_code), settings.model)
    tokenizer = load_tokenizer(settings.model, settings.trust_remote_code)
    warn_of_own_tokenizer(trained.folder, tokenizer)
    if settings.chat_template is not None:
        tokenizer.chat_template = read_template(settings.chat_template)
    rows = load_examples(settings.data, "validation", settings)
    note_unused(rows, settings, tokenizer)
    known = answered_prompts(rows, tokenizer)
    if not known.answers:
        raise InputError(
            f"{settings.data} has no prompts with answers; --generate needs rows with both, or"
            " messages of which the last is the assistant's"
        )
    for left_out in known.left_out:
        warnings.warn(DataWarning(f"{settings.data}: {left_out}"), stacklevel=2)
    prompts = spread(settings.eval_blocks or 0, list(known.answers))
    references = [known.answers[prompt] for prompt in prompts]

    def answer(model: Any, _: bool) -> dict[str, Any]:
        texts = generate_texts(
            model,
            tokenizer,
            prompts,
            decoding,
            settings.batch_size,
            have_template=known.have_template,
        )
        return {**score_texts(texts, references, encoder), "texts": texts}

    base = load_model(settings.model, settings.dtype, settings.trust_remote_code)
    scores = _scores(base, trained, answer)
    data = {
        "model": settings.model,
        "adapter": trained.folder,
        "data": settings.data,
        "decoding": asdict(decoding),
        **scores,
        "prompts": prompts,
        "references": references,
    }
    metrics = [name for name, value in scores["base"].items() if isinstance(value, float)]
    rows = [(name, *(of_model[name] for of_model in scores.values())) for name in metrics]
    counts = f"{len(prompts):,} prompts, {sum(map(len, references)):,} references"

    def show(console: Console) -> None:
        console.print(table(["", *scores], rows))
        console.print(counts)

    return Answer(data, show)
