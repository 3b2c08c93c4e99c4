"""Converts rows to tokens; for each token, whether it is scored and its number of UTF-8 bytes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qpeft.errors import DataError
from qpeft.training.interrupt import interruptible
from qpeft.training.sources import Row, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]  # first character, one past the last

_DOCUMENTS_AT_A_TIME = 256
_FEW_UNKNOWN = 0.001


class Tokens(NamedTuple):
    """A sequence of T tokens: a document, an example, or a block cut from documents."""

    ids: np.ndarray  # (T,) int64
    scored: np.ndarray  # (T,) bool
    n_bytes: np.ndarray  # (T,) int64; 0 for special tokens

    def cut(self, start: int, stop: int) -> Tokens:
        """Tokens `start` to `stop`, without copying."""
        return Tokens(*(part[start:stop] for part in self))

    @property
    def n_targets(self) -> int:
        """Number of scored tokens that have a predecessor."""
        return int(self.scored[1:].sum())


def encode(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
    """The tokens of each row; an answer at the end of a row is followed by the end-of-text token.

    A token that spans the end of the prompt and the start of the answer is scored. Raises DataError if the tokenizer
    has no character offsets, or no chat template for messages.
    """
    if not tokenizer.is_fast:
        raise DataError(f"{type(tokenizer).__name__} has no character offsets; use a model with a tokenizer.json")
    encoded: list[Tokens] = []
    for start in range(0, len(rows), _DOCUMENTS_AT_A_TIME):
        encoded += _encode(rows[start : start + _DOCUMENTS_AT_A_TIME], tokenizer)
    return encoded


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """The token between two documents and after an answer; empty if the tokenizer has none."""
    ids = np.array([i for i in (tokenizer.eos_token_id,) if i is not None], dtype=np.int64)
    return Tokens(ids, np.ones(len(ids), dtype=bool), np.zeros(len(ids), dtype=np.int64))


def unknown_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token of text that the tokenizer cannot represent; None if it has none with no other use."""
    others = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    found = tokenizer.unk_token_id
    return found if isinstance(found, int) and found not in others else None


def warn_of_unknown(
    texts: Iterable[np.ndarray], tokenizer: PreTrainedTokenizerBase, source: str, are_scored: bool = True
) -> None:
    """Warn if more than one of 1,000 tokens in `texts`, token ids (T,), is unknown; `are_scored`: as a language."""
    ids = np.concatenate(list(texts))
    share = 0.0 if (unknown := unknown_token(tokenizer)) is None else float((ids == unknown).mean())
    if share > _FEW_UNKNOWN:
        effect = ", and losses and bits per byte are too low" if are_scored else ""
        warnings.warn(
            f"{share:.1%} of the tokens of {source} are unknown to the tokenizer ({tokenizer.unk_token}): their text "
            f"is lost{effect}; use text or a model that fit each other",
            stacklevel=1,
        )


def join(parts: Sequence[Tokens]) -> Tokens:
    """The concatenation of `parts`."""
    return Tokens(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _encode(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
    texts, spans = zip(*(_text_and_spans(row, tokenizer) for row in rows), strict=True)
    templated = "messages" in rows[0]  # a chat template includes the special tokens
    options: dict[str, Any] = {"add_special_tokens": not templated, "return_offsets_mapping": True, "verbose": False}
    batch = interruptible(lambda: tokenizer(list(texts), **options))
    encoded = []
    for text, row_spans, *parts in zip(texts, spans, batch["input_ids"], batch["offset_mapping"], strict=True):
        tokens = _tokens(text, row_spans, *parts)
        has_end = len(tokens.ids) and tokens.ids[-1] == tokenizer.eos_token_id
        ends_with_answer = row_spans and row_spans[-1][0] < row_spans[-1][1] == len(text)
        encoded.append(join([tokens, end_of_text(tokenizer)]) if ends_with_answer and not has_end else tokens)
    return encoded


def _text_and_spans(row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[Span] | None]:
    """The row as one text, and its scored spans (None: all)."""
    if "text" in row:
        return row["text"], None
    if "messages" in row:
        return _render_chat(row["messages"], tokenizer)
    text = row["prompt"] + row["completion"]
    return text, [(len(row["prompt"]), len(text))]


def _render_chat(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[Span]]:
    if tokenizer.chat_template is None:
        raise DataError(
            "the data has messages, but the tokenizer has no chat template; use a chat model, "
            "or give the columns prompt and completion"
        )

    shown = shorten(str(messages), 80)

    def render(part: list[dict[str, str]], opened: bool = False) -> str:
        try:
            return str(tokenizer.apply_chat_template(part, tokenize=False, add_generation_prompt=opened))
        except Exception as error:  # a template can fail in any way, and raises its own errors for some messages
            raise DataError(
                f"the chat template of the tokenizer fails for the messages {shown}: {first_line(error)}; change the "
                "messages, or give the columns prompt and completion"
            ) from error

    text, spans = render(messages), []
    for n, message in enumerate(messages):
        if message["role"] == "assistant":
            before, after = render(messages[:n], opened=True), render(messages[: n + 1])
            start, end = (_common(text, part) for part in (before, after))
            if end < len(after):  # the template changes earlier answers, for example removes an empty reasoning
                content = message["content"].strip()
                longer = render([*messages[:n], {**message, "content": content + "\0"}, *messages[n + 1 :]])
                end = _common(text, longer)
                if longer == text or not text[start:end].endswith(content):
                    raise DataError(
                        "the chat template of the tokenizer changes earlier answers when a conversation continues, for "
                        f"the messages {shown}, so their place is unknown; give the columns prompt and completion"
                    )
                end += _common(text[end:], after[after.rfind(content) + len(content) :])  # the mark of its end
            spans.append((start, end))
    return text, spans


def _common(one: str, other: str) -> int:
    """The length of the common beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _tokens(text: str, spans: list[Span] | None, ids: list[int], offsets: list[Span]) -> Tokens:
    starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    scored = np.full(len(ids), spans is None)
    for first, last in spans or []:
        scored |= (ends > first) & (starts < last)
    return Tokens(np.array(ids, dtype=np.int64), scored, _bytes_between(text, ends))


def _bytes_between(text: str, ends: np.ndarray) -> np.ndarray:
    """Bytes from the end of the previous token to the end of each token, so that they add up to the whole text.

    Some tokenizers leave spaces out of their offsets, and several tokens may share one character.
    """
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF)
    before = np.concatenate([[0], np.cumsum(widths)])  # bytes before each character
    return np.diff(before[np.maximum.accumulate(ends)], prepend=0) if len(ends) else np.zeros(0, dtype=np.int64)
