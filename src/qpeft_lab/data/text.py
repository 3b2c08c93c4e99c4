"""Texts as tokens: for each token, whether it is scored and its number of UTF-8 bytes; cut into
blocks, and batched.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from qpeft.checks import unknown
from qpeft.errors import ConfigError, DataError, DataWarning, InputError
from qpeft_lab.base_files import NO_CHAT_TEMPLATE
from qpeft_lab.data.files import Row, cause
from qpeft_lab.data.labelled import HELD_OUT_EVERY
from qpeft_lab.data.sources import has_validation_split, kept_rows, load_examples, spread

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from qpeft_lab.settings import SharedSettings

Span = tuple[int, int]  # first character, one past the last

IGNORED = -100
TEMPLATES = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}

_DOCUMENTS_AT_A_TIME = 256  # between which Ctrl-C is handled


class Prompts(NamedTuple):
    """Prompts as texts, in the order of the rows, and all answers that the rows have for each."""

    answers: dict[str, list[str]]
    have_template: bool  # with its special tokens, so that the tokenizer must add none
    left_out: list[str]  # a sentence about rows without an answer at their end, if there are any


class Tokens(NamedTuple):
    """A sequence of T tokens: a document, an example, or a block cut from documents."""

    ids: np.ndarray  # (T,) int64
    scored: np.ndarray  # (T,) bool
    n_bytes: np.ndarray  # (T,) int64; 0 for special tokens
    attended: np.ndarray  # (T,) bool; False for padding that is scored


def load_blocks(
    settings: SharedSettings, seq_len: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Tokens], list[Tokens]]:
    """The blocks of a run to train on and to evaluate. Raises DataError if there is too little
    data.
    """
    make = partial(cut, seq_len=seq_len, tokenizer=tokenizer, pad_rows=settings.pad_rows)
    rows = load_examples(settings.data, "train", settings)
    note_unused(rows, settings, tokenizer)
    validation = settings.eval_data or (
        settings.data if has_validation_split(settings.data) else None
    )
    if validation:
        train = make(rows, source=settings.data)
        evaluation = make(load_examples(validation, "validation", settings), source=validation)
    elif len(rows) >= HELD_OUT_EVERY:
        train = make([row for number, row in enumerate(rows, start=1) if number % HELD_OUT_EVERY])
        evaluation = make(rows[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])
    else:
        blocks = make(rows)
        n_train = len(blocks) - max(1, len(blocks) // HELD_OUT_EVERY)
        train = blocks[:n_train]
        evaluation = blocks[n_train:]
    is_whole = "text" not in rows[0] or settings.pad_rows
    train = [block for block in train if is_whole or len(block.ids) == seq_len]
    for source, blocks in ((settings.data, train), (validation or settings.data, evaluation)):
        if not blocks:
            raise DataError(
                f"{source} has too little data: training and evaluation need a block of"
                f" seq_len={seq_len} tokens each, or an answer within that length; change seq_len,"
                " give more data, or set eval_data"
            )
    return train, spread(settings.eval_blocks or 0, evaluation)


def cut(
    rows: Sequence[Row],
    seq_len: int,
    tokenizer: PreTrainedTokenizerBase,
    source: str = "the data",
    pad_rows: bool = False,
) -> list[Tokens]:
    """Blocks of at most `seq_len` tokens, each with at least one token to score.

    Texts are joined by one end-of-text token, and cut; only the last block may be shorter. With
    `pad_rows` every text, also an empty one, is a block, padded with the end-of-text token, which
    is scored. Rows with a prompt are not joined but truncated to `seq_len`; a row whose answer
    begins later is left out, with a warning.

    Raises DataError for rows with a prompt and `pad_rows`, and InputError for `pad_rows` without an
    end-of-text token.
    """
    is_text = "text" in rows[0]
    if not is_text and pad_rows:
        raise DataError(f"pad_rows is for rows of text; {source} has prompts or messages")
    encoded = encode(rows, tokenizer)
    if is_text and not pad_rows:
        end = end_of_text(tokenizer)
        joined = join([part for document in encoded for part in (end, document)][1:])
        begins = [(joined, start) for start in range(0, len(joined.ids), seq_len)]
    else:
        begins = [(tokens, 0) for tokens in encoded]
    blocks = [
        Tokens(*(part[start : start + seq_len] for part in tokens)) for tokens, start in begins
    ]
    if pad_rows:
        end = end_of_text(tokenizer)
        if not len(end.ids):
            raise InputError(
                "the tokenizer has no end-of-text token to pad rows with; add one to it"
            )
        padding = end._replace(attended=np.zeros(1, dtype=bool))
        return [join([block, *[padding] * (seq_len - len(block.ids))]) for block in blocks]
    scored = [block for block in blocks if block.scored[1:].any()]
    why = f"no answer that begins within seq_len={seq_len} tokens"
    return scored if is_text else kept_rows(source, scored, len(rows), why)


def collate(blocks: Sequence[Tokens]) -> dict[str, torch.Tensor]:
    """A batch of int64 tensors (B, T), padded on the right: input_ids, attention_mask, and labels.

    A label is -100 where the token is not scored. Where blocks are shorter, the id and the mask are
    0.
    """
    parts = {"input_ids": [], "attention_mask": [], "labels": []}
    for block in blocks:
        labels = np.where(block.scored, block.ids, IGNORED)
        labels[0] = IGNORED  # it has no predecessor
        for name, values in zip(
            parts, (block.ids, block.attended.astype(np.int64), labels), strict=True
        ):
            parts[name].append(torch.from_numpy(values))
    usual = {"labels": IGNORED}
    return {name: pad_sequence(part, True, usual.get(name, 0)) for name, part in parts.items()}


def encode(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
    """The tokens of each row; an answer at the end of a row is followed by the end-of-text token.

    A token that spans the end of the prompt and the start of the answer is scored. Raises DataError
    if the tokenizer has no character offsets, or no chat template for messages.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} has no character offsets; use a model with a"
            " tokenizer.json"
        )
    # a chat template includes the special tokens
    templated = any("messages" in row for row in rows[:1])
    options: dict[str, Any] = {
        "add_special_tokens": not templated,
        "return_offsets_mapping": True,
        "verbose": False,
    }
    end = end_of_text(tokenizer)
    is_ended = not templated and adds_end(tokenizer)
    encoded = []
    for start in range(0, len(rows), _DOCUMENTS_AT_A_TIME):
        marked = [
            _text_and_spans(row, tokenizer) for row in rows[start : start + _DOCUMENTS_AT_A_TIME]
        ]
        batch = tokenizer([text for text, _ in marked], **options)
        for (text, spans), ids, offsets in zip(
            marked, batch["input_ids"], batch["offset_mapping"], strict=True
        ):
            n = len(ids) - is_ended  # of an answer the end is scored, so it is added below
            tokens = _tokens(text, spans, ids[:n], offsets[:n])
            has_end = len(tokens.ids) and tokens.ids[-1] == tokenizer.eos_token_id
            ends_with_answer = spans and spans[-1][0] < spans[-1][1] == len(text)
            encoded.append(join([tokens, end]) if ends_with_answer and not has_end else tokens)
    return encoded


def adds_end(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer adds the end-of-text token after every text by itself, as Llama's can;
    OPT's adds the same token in front.
    """
    return tokenizer("a")["input_ids"][-1:] == end_of_text(tokenizer).ids.tolist() != []


def note_unused(
    rows: Sequence[Row], settings: SharedSettings, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Warn if a chat template is given and the rows have no messages, or if their messages have
    parts that the template does not contain, such as `train: false`.
    """
    messages = [message for row in rows for message in row.get("messages", ())]
    parts = {part for message in messages for part in message if message[part] is not None}
    template = str(tokenizer.chat_template)
    unread = [
        part
        for part in sorted(parts - {"role", "content", "weight"})
        if not re.search(rf"\b{re.escape(part)}\b", template)
    ]
    if unread:
        found = (
            f"messages of {settings.data} have {', '.join(unread)}, which the chat template does"
        )
        warnings.warn(
            DataWarning(f"{found} not read; every message of an assistant is learned"), stacklevel=2
        )
    if settings.chat_template is not None and "messages" not in rows[0]:
        warnings.warn(
            DataWarning(f"{settings.data} has no messages: the chat template is not used"),
            stacklevel=2,
        )


def answered_prompts(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """What answers can be generated for: prompts with a completion, and conversations, in the chat
    template, up to their last message if it is the assistant's. There are none in rows of text.

    Raises DataError if the chat template is missing or fails.
    """
    answers: dict[str, list[str]] = {}
    for row in rows:
        if "prompt" in row:
            answers.setdefault(row["prompt"], []).append(row["completion"].strip())
        elif "messages" in row and row["messages"][-1]["role"] == "assistant":
            *before, last = row["messages"]
            prompt = _rendered(before, tokenizer, opened=True)
            answers.setdefault(prompt, []).append(last["content"].strip())
    n_left_out = len(rows) - sum(map(len, answers.values()))
    why = "end with no message of an assistant, and no answer is generated for them"
    left_out = [f"{n_left_out} of {len(rows)} rows {why}"] if n_left_out else []
    return Prompts(answers, "messages" in rows[0], left_out)


def mark_after_answer(tokenizer: PreTrainedTokenizerBase) -> str:
    """The mark that the chat template writes after an answer, such as `<|im_end|>` or `[/ANSWER]`;
    empty if it has none but the end of text, which ends a generation, or another one, such as a
    quotation mark, which an answer may contain.
    """
    place = "\0"
    asked = [{"role": "user", "content": "."}, {"role": "assistant", "content": place}]
    text = ""
    for first in ([], [{"role": "system", "content": "."}]):  # some templates want one
        with suppress(DataError):
            text = text or _rendered([*first, *asked], tokenizer)
    _, is_there, after = text.rpartition(place)
    line = after.strip().split("\n")[0]
    mark = line.removesuffix(str(tokenizer.eos_token or "")).strip()
    return mark if is_there and mark.startswith(("<", "[")) else ""


def as_chat(message: str, tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> str:
    """The message of a user, after one of the system if there is one, in the chat template, up to
    the beginning of the answer.

    Raises DataError if the chat template is missing or fails.
    """
    messages = [{"role": "user", "content": message}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return _rendered(messages, tokenizer, opened=True)


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """The token between two documents and after an answer; empty if the tokenizer has none."""
    ids = np.array([i for i in (tokenizer.eos_token_id,) if i is not None], dtype=np.int64)
    return Tokens(
        ids,
        np.ones(len(ids), dtype=bool),
        np.zeros(len(ids), dtype=np.int64),
        np.ones(len(ids), dtype=bool),
    )


def join(parts: Sequence[Tokens]) -> Tokens:
    """The concatenation of `parts`."""
    return Tokens(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def is_template_file(name: str | None) -> bool:
    """Whether the chat template is one in a file."""
    return name is not None and name not in TEMPLATES


def read_template(name: str) -> str:
    """The chat template of a name in `TEMPLATES`, or in a file. Raises ConfigError if there is
    none.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        known = unknown("chat_template", name, TEMPLATES)
        raise ConfigError(f"{known}, or give the path of a Jinja template") from error


def _text_and_spans(row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[Span] | None]:
    """The row as one text, and its scored spans (None: all)."""
    if "text" in row:
        return row["text"], None
    if "messages" in row:
        return _render_chat(row["messages"], tokenizer)
    text = row["prompt"] + row["completion"]
    return text, [(len(row["prompt"]), len(text))]


def _rendered(
    messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, opened: bool = False
) -> str:
    """The messages in the chat template; `opened`: and the beginning of the assistant's next one.

    Raises DataError if the template is missing or fails.
    """
    if tokenizer.chat_template is None:
        raise DataError(NO_CHAT_TEMPLATE)
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened)
        )
    # a template can fail in any way, and raises its own errors for some messages
    except Exception as error:
        raise DataError(
            f"the chat template of the tokenizer fails for the messages {shorten(str(messages), 80)}:"
            f" {cause(error)}; change the messages, or give the columns prompt and completion"
        ) from error


def _render_chat(
    messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase
) -> tuple[str, list[Span]]:
    render = partial(_rendered, tokenizer=tokenizer)
    text = render(messages)
    spans = []
    for n, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        # a template may fail without a message
        before = render(messages[:n], opened=True) if n else ""
        after = render(messages[: n + 1])
        start, end = (_common(text, part) for part in (before, after))
        if n == 0 or start < len(before):
            # the template opens more than the conversation has here, such as a reasoning; the answer
            # may begin with the same characters
            changed = {**message, "content": "\0" + message["content"]}
            marked = render([*messages[:n], changed, *messages[n + 1 :]])
            start = start if marked == text else _common(text, marked)
        # the template changes earlier answers, for example removes an empty reasoning
        if end < len(after):
            content = message["content"].strip()
            marked = {**message, "content": content + "\0"}
            longer = render([*messages[:n], marked, *messages[n + 1 :]])
            end = _common(text, longer)
            if longer == text or not text[start:end].endswith(content):
                raise DataError(
                    "the chat template of the tokenizer changes earlier answers when a"
                    f" conversation continues, for the messages {shorten(str(messages), 80)}, so their"
                    " place is unknown; give the columns prompt and completion"
                )
            _, _, end_mark = render([*messages[:n], marked]).rpartition("\0")
            end += _common(text[end:], end_mark)
        spans.append((start, _end_of_turn(text, start, end, message, tokenizer)))
    return text, spans


def _end_of_turn(
    text: str, start: int, end: int, message: dict[str, str], tokenizer: PreTrainedTokenizerBase
) -> int:
    """Where the answer at `start` ends: behind the end-of-text token, if the template has it in the
    mark between the answer and `end`. Nobody generates what ChatML has after it, a line break.
    """
    token = str(tokenizer.eos_token or "")
    content = message["content"].strip()
    # an answer may contain the token, and the template may begin with a reasoning
    after = max(text.find(content, start, end), start) + len(content)
    place = text.rfind(token, after, end) if token else -1
    return end if place < 0 else place + len(token)


def _common(text: str, other: str) -> int:
    """The length of the common beginning."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(text), len(other)))


def _tokens(text: str, spans: list[Span] | None, ids: list[int], offsets: list[Span]) -> Tokens:
    starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    scored = np.full(len(ids), spans is None)
    for first, last in spans or []:
        scored |= (ends > first) & (starts < last)
    # Bytes from the end of the previous token to the end of each token, so that they add up to the
    # whole text: some tokenizers leave spaces out of their offsets, and several tokens may share
    # one character.
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF)
    before = np.concatenate([[0], np.cumsum(widths)])  # bytes before each character
    n_bytes = np.diff(before[np.maximum.accumulate(ends)], prepend=0)
    return Tokens(np.array(ids, dtype=np.int64), scored, n_bytes, np.ones(len(ids), dtype=bool))
