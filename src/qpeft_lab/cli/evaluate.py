"""`qpeft evaluate`: the score of a base model, and of an adapter on it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from qpeft.backends import BackendSettings
from qpeft.checks import option
from qpeft.errors import ConfigError, InputError
from qpeft_lab.cli.adapters import OptionalAdapter, adapter_config, run_of
from qpeft_lab.cli.command import command
from qpeft_lab.cli.console import Answer, cell, say, stderr, table
from qpeft_lab.cli.options import Fields, flag, needed
from qpeft_lab.data.glue import find_glue
from qpeft_lab.data.sources import has_validation_split, spread
from qpeft_lab.data.task_types import TASKS
from qpeft_lab.settings import COLUMNS, RunSettings, settings_from
from qpeft_lab.training.generate import Decoding
from qpeft_lab.user_files import without_folders

if TYPE_CHECKING:
    from rich.console import Console

    from qpeft_lab.training.classifier import TaskRecord

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
    from qpeft_lab.training.classifier import read_record

    folder = source.adapter and source.find(source.adapter)
    trained, record = (None, None) if folder is None else (run_of(folder), read_record(folder))
    ran = {} if trained is None else asdict(trained.recorded()[0])
    if record is not None and run.get("task", record.task) != record.task:
        raise ConfigError(
            f"{folder} was trained for task {record.task}, not {run['task']}; leave out --task"
        )
    names = {*_LENGTHS, *(() if find_glue(data) else COLUMNS)}
    of_run = {name: value for name, value in ran.items() if name in names}
    known: dict[str, Any] = (
        {"eval_blocks": 0} | of_run | run | ({"task": record.task} if record else {})
    )
    trusted = source.trust_remote_code
    known |= {
        "model": source.base(folder),
        "data": data,
        "out": "",
        "seed": seed,
        "trust_remote_code": trusted,
    }
    settings = settings_from(RunSettings, known)
    settings.check()
    if ran.get("data") == data and not has_validation_split(data, TASKS[settings.task].has_images):
        warnings.warn(
            f"{data} are the training data of {source.adapter}: most were learned", stacklevel=2
        )
    swept = product(
        dict.fromkeys(shots or [None]), dict.fromkeys(noise or [0.0])
    )  # a value given twice is one
    points = [BackendSettings(**circuits, shots=n, noise=p) for n, p in swept]
    measure = None
    if folder is not None and not generate and (shots or noise or "backend" in circuits):
        measure = partial(_measured, settings, folder, points, seconds_per_circuit)
    given = {
        "shots": shots,
        "noise": noise,
        **circuits,
        "seed": seed,
        "seconds_per_circuit": seconds_per_circuit,
    }
    if measure is None and (first := next(filter(given.get, given), None)):
        raise InputError(
            f"{flag(first)} needs --adapter, one of --shots, --noise and --backend, and no"
            " --generate"
        )
    if generate:
        return _score_answers(settings, folder, Decoding(**search), bertscore_model)
    if texts := [*search, *(["bertscore_model"] if bertscore_model else [])]:
        raise InputError(
            f"{flag(texts[0])} is for generated answers; add --generate, or leave it out"
        )
    return _score_task(settings, folder, record, measure)


def _measured(
    settings: RunSettings,
    folder: Path,
    points: list[BackendSettings],
    seconds: float | None,
    task: Any,
    model: Any,
) -> Any:
    """The exact score, and costs and score at each point, whose jobs are in a folder of its own in
    `folder`.
    """
    from qpeft.core.checkpoint import WEIGHTS
    from qpeft.files import file_hash
    from qpeft_lab.training.measured import measured_scores

    run, weights = (
        (settings.model, settings.dtype, settings.batch_size, settings.seed),
        file_hash(folder / WEIGHTS),
    )

    def folder_of(point: BackendSettings) -> Path:
        parts = run, without_folders({**asdict(point), "shot_budget": None}), task.sha256(), weights
        return folder / "measured" / hashlib.sha256(repr(parts).encode()).hexdigest()[:12]

    def forecast(costs: list[dict[str, Any]]) -> None:
        for one in costs:
            if seconds is not None:
                one["hours"] = seconds * (one["circuits"] - one.get("answered_before", 0)) / 3600
            say(
                "Forecast:",
                ", ".join(f"{cell(value)} {name.replace('_', ' ')}" for name, value in one.items()),
            )
        say("Forecast:", f"{sum(one['shots'] for one in costs):,} shots in all")

    return measured_scores(
        model, partial(task.score, model), points, settings.seed, forecast, folder_of
    )


def _score_task(
    settings: RunSettings,
    folder: Path | None,
    record: TaskRecord | None,
    measure: Callable[..., Any] | None,
) -> Answer:
    """The scores of the base, unless its head is for other classes, and of the adapted model; or of
    its circuits.
    """
    from qpeft_lab.training.tasks import TASK_CLASSES

    if folder is not None and record is None and not settings.is_language_model:
        raise InputError(
            f"{folder} has no task.json with its classes; give the run folder of a classification"
        )
    config = {} if folder is None else adapter_config(folder)
    reserved = (config | (config.get("host") or {})).get(
        "num_virtual_tokens"
    ) or 0  # positions of a prefix or a prompt
    task = TASK_CLASSES[settings.task](settings, reserved, () if record is None else record.labels)
    task.evaluation = spread(settings.eval_blocks or 0, list(task.evaluation))

    def score(model: Any, is_base: bool) -> Any:
        if is_base and (measure or task.has_new_head):
            return None
        return measure(task, model) if measure else task.score(model)

    scores = _scores(task.load_base(), folder, score)
    found = {
        "model": settings.model,
        "adapter": folder,
        "data": settings.data,
        "task": settings.task,
    }
    measured = []
    if measure:
        scores["adapted"], measured = scores["adapted"]
    found |= {who: score and score.to_dict() for who, score in scores.items()}
    found |= (
        {"measured": [costs | score.to_dict() for costs, score in measured]} if measured else {}
    )

    def show(console: Console) -> None:
        shown = {who: score for who, score in scores.items() if score is not None}
        for costs, score in measured:
            shown[f"{costs['shots_per_circuit'] or 'no'} shots, noise {costs['noise']:g}"] = score
        first = next(iter(shown.values()))
        rows = [[who, *score.described().values()] for who, score in shown.items()]
        counts = f"{first.n_scored:,} {'tokens' if settings.is_language_model else 'examples'}"
        console.print(table(["", *first.described()], rows), counts, sep="\n")

    return Answer(found, show)


def _scores(model: Any, folder: Path | None, score: Callable[[Any, bool], Any]) -> dict[str, Any]:
    """The scores of `base`, and of `adapted` if there is an adapter."""
    import torch

    import qpeft

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with stderr().status("Scoring"):
        scores = {"base": score(model.to(device), True)}
        if folder is not None:
            scores["adapted"] = score(qpeft.load(model, folder).to(device), False)
    return scores


def _score_answers(
    settings: RunSettings, folder: Path | None, decoding: Decoding, encoder: Path | None
) -> Answer:
    """The scores of the answers of the base and, with `folder`, of the adapted model."""
    from qpeft_lab.base_model import load_model, load_tokenizer
    from qpeft_lab.data.sources import load_examples, references_by_prompt
    from qpeft_lab.metrics import score_texts
    from qpeft_lab.metrics.texts import encoder_layers
    from qpeft_lab.training.generate import generate_texts

    if not settings.is_language_model:
        raise InputError(f"--generate is for task causal-lm, not for {settings.task}; leave it out")
    decoding.check()
    if encoder is not None:
        encoder_layers(encoder)
    known = references_by_prompt(load_examples(settings.data, "validation", settings))
    if not known:
        raise InputError(
            f"{settings.data} has no prompts with answers; --generate needs rows with both"
        )
    prompts = spread(settings.eval_blocks or 0, list(known))
    references = [known[prompt] for prompt in prompts]
    tokenizer = load_tokenizer(settings.model, settings.trust_remote_code)

    def answer(model: Any, _: bool) -> dict[str, Any]:
        texts = generate_texts(model, tokenizer, prompts, decoding, settings.batch_size)
        return {**score_texts(texts, references, encoder), "texts": texts}

    found = _scores(
        load_model(settings.model, settings.dtype, settings.trust_remote_code), folder, answer
    )
    data = {
        "model": settings.model,
        "adapter": folder,
        "data": settings.data,
        "decoding": asdict(decoding),
        **found,
    }
    data |= {"prompts": prompts, "references": references}
    scored = [name for name, value in found["base"].items() if isinstance(value, float)]
    rows = [(name, *(scores[name] for scores in found.values())) for name in scored]
    counts = f"{len(prompts):,} prompts, {sum(map(len, references)):,} references"
    return Answer(data, lambda console: console.print(table(["", *found], rows), counts, sep="\n"))
