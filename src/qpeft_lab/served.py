"""Whether a server has applied an adapter: its log-probabilities of next tokens, compared with local
ones of the adapter and of the base.

Every OpenAI-compatible server answers `/v1/completions` with the log-probabilities of the most
likely tokens: vLLM, llama.cpp's llama-server, llama-cpp-python. They are compared by the text of a
token, since servers give no token ids.
"""

from __future__ import annotations

import json
import math
import os
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import Future
from http.client import HTTPException
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from qpeft.errors import InputError, QpeftError

if TYPE_CHECKING:
    from torch import Tensor

KEY = "QPEFT_API_KEY"  # the environment variable with the server's key
LOWEST_TOLERANCE = 1e-3  # nats: servers keep keys and values, or sums, in less than float32
N_ROUNDINGS = 4
PROMPTS = (
    "The capital of France is",
    "Once upon a time there was",
    "def mean(values):",
    "The results of the experiment show that",
    "She opened the letter and",
    "name: Blue Spice, food: French, area:",
    "In 1969, the first",
    "Q: What is 12 + 30? A:",
    "Returns the number of",
    "To be, or not to",
    "The weather today is",
    "1, 2, 3, 4,",
)
_N_TOKENS = 5  # of each prompt; what servers give at most by default
_N_CANDIDATES = 50  # tokens among which theirs are searched
_NO_TEXT = "\ufffd"  # stands for the bytes of an unfinished character
_MOST_BYTES = 1_000_000  # of an answer


class Served(NamedTuple):
    """What a server gave; distances are root mean squares over log-probabilities, in nats."""

    verdict: str  # "adapter", "base", "neither" or "undecided"
    to_adapter: float
    to_base: float
    tolerance: float
    n_compared: int


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection would send the key to another server."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        """No request: the redirection is an error."""


def completions_url(url: str) -> str:
    """The address of the completions, for that of a server with or without `/v1`. Raises InputError
    for what is no http address.
    """
    refusal = InputError(f"{_short(url)} is no address such as http://localhost:8000")
    try:
        parts = urlsplit(url.strip())
        is_complete = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        raise refusal from None
    if parts.scheme not in ("http", "https") or not is_complete or parts.query or parts.fragment:
        raise refusal
    if parts.username is not None:
        raise InputError(f"the address contains a user name; give a key in {KEY} instead")
    return url.strip().rstrip("/").removesuffix("/v1") + "/v1/completions"


def ask(url: str, name: str, prompt: str, timeout: float) -> dict[str, float]:
    """The log-probabilities of the most likely next tokens by their texts, for `name` at `url` of
    `completions_url`.

    Raises QpeftError if there is no answer within `timeout` seconds, or another one.
    """
    fields = {"model": name, "prompt": prompt, "max_tokens": 1, "temperature": 0}
    body = json.dumps({**fields, "logprobs": _N_TOKENS}).encode()
    headers = {"Content-Type": "application/json"}
    key = os.environ.get(KEY, "")
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, body, headers)
    reply: Future[bytes] = Future()
    Thread(target=_post, args=(request, timeout, reply), daemon=True).start()
    try:
        answer = json.loads(reply.result(timeout))
        return _log_probabilities(answer["choices"][0]["logprobs"])
    except urllib.error.HTTPError as error:
        reason = _short(error.reason)
        if key:
            reason = reason.replace(key, "***")
        hint = f"; give its key in the environment variable {KEY}" if error.code == 401 else ""
        raise QpeftError(
            f"{url} answered with status {error.code}: {reason}{hint}. Is {_short(name)!r} a model"
            " of this server?"
        ) from None
    except TimeoutError as error:
        raise QpeftError(
            f"{url} gave no answer within {timeout:g} s; raise --timeout, or try again when the"
            " server has loaded its model"
        ) from error
    except (OSError, HTTPException) as error:  # URLError is an OSError
        if isinstance(getattr(error, "reason", None), TimeoutError):
            raise QpeftError(
                f"{url} gave no answer within {timeout:g} s; raise --timeout"
            ) from None
        raise QpeftError(
            f"no server answers at {url}: {_short(getattr(error, 'reason', error))}"
        ) from None
    # the last two for a number that is no float, and for JSON that is nested too deeply
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise QpeftError(
            f"{url} is no completions server, or gives no log-probabilities: its answer has no"
            f" choices[0].logprobs with {_N_TOKENS} tokens. llama-cpp-python needs --logits_all"
        ) from error


def _post(request: urllib.request.Request, timeout: float, reply: Future[bytes]) -> None:
    """Let `reply` be the body, or the error; an HTTPError has the server's text as its reason.

    In a thread of its own, which is abandoned if the server sends header or body slowly or without
    an end: urllib's timeout is that of each part.
    """
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout) as opened:
            body = opened.read(_MOST_BYTES + 1)
        if len(body) > _MOST_BYTES:
            raise ValueError("the answer is too long")
        reply.set_result(body)
    except urllib.error.HTTPError as error:
        error.msg = error.read(_MOST_BYTES).decode(errors="replace") or error.msg
        reply.set_exception(error)
    except Exception as error:
        reply.set_exception(error)


def _log_probabilities(answer: Any) -> dict[str, float]:
    """By the text of the token. OpenAI's field is `top_logprobs`; llama-server has `content`."""
    if "content" in answer:
        tokens = {
            entry["token"]: entry["logprob"] for entry in answer["content"][0]["top_logprobs"]
        }
    else:
        tokens = answer["top_logprobs"][0]
    values = {str(text): float(value) for text, value in tokens.items()}
    if not values:
        raise ValueError("no tokens")
    return values


def local_log_probabilities(model: Any, tokenizer: Any) -> Tensor:
    """Of the next token after each prompt, (prompts, vocabulary), float32."""
    import torch

    rows = []
    with torch.no_grad():
        for prompt in PROMPTS:
            inputs = tokenizer(prompt, return_tensors="pt")
            rows.append(model(**inputs).logits[0, -1].float().log_softmax(-1))
    return torch.stack(rows)


def tolerance_of(model: Any, tokenizer: Any, exact: Tensor, dtype: str) -> float:
    """What counts as equal on a server of this precision, in nats: several times the root mean
    square of what it changes in the likely log-probabilities of `model`.

    `exact` are those in float32, (prompts, vocabulary).
    """
    import torch

    if dtype == "float32":
        return LOWEST_TOLERANCE
    with torch.autocast("cpu", getattr(torch, dtype)):
        rounded = local_log_probabilities(model, tokenizer)
    likely = exact.topk(_N_TOKENS).indices  # (prompts, tokens)
    effect = (rounded - exact).gather(1, likely).square().mean().sqrt().item()
    return max(LOWEST_TOLERANCE, N_ROUNDINGS * effect)


def compare(
    answers: list[dict[str, float]], adapter: Tensor, base: Tensor, tokenizer: Any, tolerance: float
) -> Served:
    """Decide which of the local log-probabilities, (prompts, vocabulary), the `answers` to the
    prompts are.

    Raises QpeftError if the server's tokens are others.
    """
    pairs = []  # (server - adapter, server - base)
    n_given = 0
    for prompt, answer, row, base_row in zip(PROMPTS, answers, adapter, base, strict=True):
        tokens = _tokens(tokenizer, prompt, row, base_row)
        given = {text: value for text, value in answer.items() if _NO_TEXT not in text}
        known = [text for text in given if text in tokens]
        if given and not known:
            raise QpeftError(
                f"none of the server's tokens after {prompt!r} is among the local base's likely"
                " ones: it serves another model"
            )
        n_given += len(given)
        for text in known:
            token = tokens[text]
            pairs.append((given[text] - row[token].item(), given[text] - base_row[token].item()))
    if 2 * len(pairs) < max(n_given, len(PROMPTS)):
        raise QpeftError(
            f"{n_given - len(pairs)} of the server's {n_given} tokens are not among the local base's"
            " likely ones: it serves another model"
        )
    to_adapter, to_base = (
        math.hypot(*side) / math.sqrt(len(pairs))  # of 1e200 too
        for side in zip(*pairs, strict=True)
    )
    is_adapter = to_adapter <= tolerance
    is_base = to_base <= tolerance
    verdict = {(True, False): "adapter", (False, True): "base", (True, True): "undecided"}.get(
        (is_adapter, is_base), "neither"
    )
    return Served(verdict, to_adapter, to_base, tolerance, len(pairs))


def _tokens(tokenizer: Any, prompt: str, *rows: Tensor) -> dict[str, int]:
    """The likely next tokens by what each adds to the prompt's text, if no other adds the same."""
    prompt_ids = tokenizer(prompt)["input_ids"]
    start = len(tokenizer.decode(prompt_ids))
    n_candidates = min(_N_CANDIDATES, len(rows[0]))
    likely = {token for row in rows for token in row.topk(n_candidates).indices.tolist()}
    texts = {token: tokenizer.decode([*prompt_ids, token])[start:] for token in likely}
    counts = Counter(texts.values())
    return {text: token for token, text in texts.items() if counts[text] == 1}


def _short(value: Any) -> str:
    """The value on one line of at most 200 printable characters."""
    text = " ".join(str(value)[:1000].split())
    text = "".join(char for char in text if char.isprintable())
    return text if len(text) <= 200 else f"{text[:197]}..."
