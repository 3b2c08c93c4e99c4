"""`qpeft evaluate --generate`: answers to the prompts of the data, scored against all answers that the data has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qpeft.cli.console import Answer, table
from qpeft.errors import InputError
from qpeft.training.decoding import Decoding
from qpeft.training.settings import TrainSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

Generate = Annotated[
    bool,
    typer.Option(
        "--generate",
        metavar="",
        help="Generate an answer to each prompt of the data, and score the texts against all answers of the data: "
        "BLEU, NIST, chrF, ROUGE, CIDEr.",
        rich_help_panel="Generated answers",
    ),
]
Meteor = Annotated[
    bool,
    typer.Option(
        "--meteor",
        metavar="",
        help="Compute METEOR as well, which needs Java and pip install 'qpeft[meteor]'.",
        rich_help_panel="Generated answers",
    ),
]
BertscoreModel = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Compute BERTScore as well, with the encoder in this folder; it needs pip install 'qpeft[bertscore]'.",
        rich_help_panel="Generated answers",
    ),
]


def refuse_without_generate(given: dict[str, Any]) -> None:
    """Raise InputError if an option of generated answers was given."""
    if names := [name for name, value in given.items() if value]:
        option = f"--{names[0].replace('_', '-')}"
        raise InputError(f"{option} is for generated answers; add --generate, or leave it out")


def score_answers(
    settings: TrainSettings,
    folder: Path | None,
    decoding: Decoding,
    with_meteor: bool,
    encoder: Path | None,
) -> Answer:
    """The scores of the answers of the base and, with `folder`, of the adapted model."""
    import torch

    import qpeft
    from qpeft.core.base_model import load_model, load_tokenizer
    from qpeft.metrics import score_texts
    from qpeft.metrics.encoders import encoder_layers
    from qpeft.metrics.overlap import meteor_program
    from qpeft.training.blocks import columns_of
    from qpeft.training.generation import generate_texts
    from qpeft.training.sources import load_examples, references_by_prompt

    if not settings.is_language_model:
        raise InputError(f"--generate is for task causal-lm, not for {settings.task}; leave it out")
    decoding.check()
    if with_meteor:
        meteor_program()
    if encoder is not None:
        encoder_layers(encoder)
    known = references_by_prompt(load_examples(settings.data, "validation", columns_of(settings)))
    if not known:
        raise InputError(f"{settings.data} has no prompts with answers; --generate needs rows with both")
    prompts, references = list(known), list(known.values())
    tokenizer = load_tokenizer(settings.model, settings.trust_remote_code)

    def answer(model: Any, who: str) -> dict[str, Any]:
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        with _counted(len(prompts), f"Generating with {who}") as advance:
            texts = generate_texts(model, tokenizer, prompts, decoding, settings.batch_size, advance)
        return {**score_texts(texts, references, encoder, with_meteor), "texts": texts}

    model = load_model(settings.model, settings.dtype, settings.trust_remote_code)
    found = {"base": answer(model, "base")}
    if folder is not None:
        found["adapted"] = answer(qpeft.load(model, folder), "adapted")
    data = {"model": settings.model, "adapter": folder, "data": settings.data, "decoding": asdict(decoding), **found}
    data |= {"prompts": prompts, "references": references}
    return Answer(data, lambda console: _show(console, found, references, decoding))


@contextmanager
def _counted(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal; the yielded function advances it."""
    from rich.progress import Progress

    from qpeft.cli.console import stderr

    console = stderr()
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda n: bar.advance(task, n)


def _show(console: Console, found: dict[str, dict[str, Any]], references: list[list[str]], decoding: Decoding) -> None:
    from qpeft.compare.metrics import OF_TEXTS

    computed = {name: metric for name, metric in OF_TEXTS.items() if next(iter(found.values()))[name] is not None}
    rows = [
        [_title(metric), *(f"{metric.factor * scores[name]:.2f}" for scores in found.values())]
        for name, metric in computed.items()
    ]
    console.print(table(["", *found], rows))
    n = sum(map(len, references))
    how = f"{decoding.num_beams} beams" if decoding.num_beams > 1 else "the most likely token each time"
    console.print(f"{len(references):,} prompts, {n:,} references, {how}")


def _title(metric: Any) -> str:
    return f"{metric.title} (%)" if metric.unit == "%" else metric.title
