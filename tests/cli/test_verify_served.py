"""`qpeft verify-served` against a server of completions in this process."""

import json
import threading

import pytest
import torch
from http_server import LocalServer
from transformers import AutoModelForCausalLM, AutoTokenizer

import qpeft
from qpeft_lab.served import KEY

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SECRET = "sk-secret-123"


class Server(LocalServer):
    """Answers every request with `status` and what `reply(fields)` returns; keeps the requests."""

    def __init__(self):
        self.reply, self.requests = dict, []
        self.released = threading.Event()
        super().__init__()

    def respond(self, path, headers, body):
        fields = json.loads(body)
        self.requests.append((path, dict(headers), fields))
        answer = self.reply(fields)
        return answer if isinstance(answer, bytes) else json.dumps(answer).encode()

    def close(self):
        self.released.set()
        super().close()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.close()


@pytest.fixture(scope="module")
def models(base_folder, adapter_folder):
    """The base, the adapter, and another base."""

    def base():
        return AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).eval()

    adapter = qpeft.load(base(), adapter_folder).eval()
    other = base()
    other.model.norm.weight.data.mul_(1.5)
    return {"base": base(), "adapter": adapter, "other": other}


@pytest.fixture(scope="module")
def answers(models, base_folder):
    """The reply of a server that has one of the models, in OpenAI's form or in llama-server's."""
    tokenizer = AutoTokenizer.from_pretrained(base_folder)

    def reply(name, form):
        def to(fields):
            assert fields["max_tokens"] == 1
            assert fields["temperature"] == 0

            with torch.no_grad():
                inputs = tokenizer(fields["prompt"], return_tensors="pt")
                logits = models[name](**inputs).logits[0, -1]
            values, tokens = logits.log_softmax(-1).topk(fields["logprobs"])
            texts = [tokenizer.decode([token]) for token in tokens.tolist()]
            pairs = list(zip(texts, values.tolist(), strict=True))
            if form == "openai":
                found = {"top_logprobs": [dict(pairs)]}
            else:
                tops = [{"token": text, "logprob": value} for text, value in pairs]
                found = {"content": [{"top_logprobs": tops}]}
            return {"choices": [{"logprobs": found}]}

        return to

    return reply


@pytest.fixture
def verify(qpeft_cli, server, adapter_folder):
    def call(*options, url=None, code=None):
        given = ("--adapter", "ana", "--run", adapter_folder, "--dtype", "float32", "--json")
        done = qpeft_cli("verify-served", url or server.url, *given, *options, code=code)
        return json.loads(done.stdout)

    return call


@pytest.mark.parametrize(
    "served, form, code",
    [
        ("adapter", "openai", 0),
        ("adapter", "llama", 0),
        ("base", "llama", 1),
        ("other", "openai", 1),
    ],
)
def test_the_model_that_the_server_has_is_named(served, form, code, server, answers, verify):
    server.reply = answers(served, form)
    verified = verify(code=code)
    assert verified["verdict"] == {"other": "neither"}.get(served, served)
    assert verified["tolerance"] == 1e-3
    assert (verified["to_adapter"] < 1e-5) == (served == "adapter")
    assert (verified["to_base"] < 1e-5) == (served == "base")

    path, _, fields = server.requests[0]
    assert path == "/v1/completions"
    assert fields["model"] == "ana"
    assert len(server.requests) == 12


def test_every_prompt_needs_tokens_of_the_base(server, answers, verify):
    """Half of the prompts without one were ignored."""
    right = answers("adapter", "openai")
    unknown = {"choices": [{"logprobs": {"top_logprobs": [{"\u4e2d": -1}]}}]}
    server.reply = lambda fields: right(fields) if len(server.requests) % 2 else unknown
    assert "another model" in verify(code=1)["message"]


def test_tolerance_is_the_effect_of_the_precision(server, answers, verify, models, monkeypatch):
    server.reply = answers("adapter", "openai")
    verified = verify("--dtype", "bfloat16", url=f"{server.url}/v1/")
    assert 1e-3 < verified["tolerance"] < 0.1
    monkeypatch.setattr("qpeft_lab.served.N_ROUNDINGS", 1e6)
    assert verify("--dtype", "bfloat16", code=1)["verdict"] == "undecided"


def test_key_is_sent_and_never_shown(server, verify, monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    server.status, server.reply = 401, lambda _: {"error": f"no such key: {SECRET}"}
    message = verify(code=1)["message"]

    assert server.requests[0][1]["Authorization"] == f"Bearer {SECRET}"
    assert SECRET not in message
    assert "status 401" in message
    assert KEY in message

    server.status, server.headers = 302, {"Location": f"{server.url}/elsewhere"}
    assert "status 302" in verify(code=1)["message"]
    assert len(server.requests) == 2  # the key was not sent elsewhere


@pytest.mark.parametrize(
    "status, reply, message",
    [
        (200, b"<html>hello</html>", "is no completions server"),
        (200, {"choices": []}, "is no completions server"),
        (200, {"choices": [{"logprobs": None}]}, "gives no log-probabilities"),
        (200, {"choices": [{"logprobs": {"top_logprobs": [{}]}}]}, "gives no log-probabilities"),
        (200, {"choices": [{"logprobs": {"top_logprobs": [{"\u4e2d": -1}]}}]}, "another model"),
        (200, b" " * 1_100_000, "is no completions server"),
        (200, b"[" * 100_000, "is no completions server"),
        (404, b"no model ana \x1b[31m", "no model ana [31m. Is 'ana' a model of this server?"),
    ],
)
def test_other_answers_are_explained(status, reply, message, server, verify):
    server.status, server.reply = status, lambda _: reply
    shown = verify(code=1)["message"]
    assert message in shown
    assert "\x1b" not in shown


def test_silent_and_absent_servers_are_explained(server, verify):
    server.reply = lambda _: server.released.wait() or {}
    assert "no answer within 0.2 s; raise --timeout" in verify("--timeout", 0.2, code=1)["message"]

    server.status = 100  # and again and again: seconds of headers, each of which arrives in time
    server.reply = lambda _: b"HTTP/1.1 100 Continue\r\n\r\n" * 300_000
    assert "no answer within 0.2 s; raise --timeout" in verify("--timeout", 0.2, code=1)["message"]

    server.close()
    assert "no server answers at" in verify(code=1)["message"]


@pytest.mark.parametrize(
    "url, message",
    [
        ("localhost:8000", "no address such as http://"),
        ("file:///etc/passwd", "no address such as"),
        ("http://", "no address"),
        ("http://host:port", "no address"),
        ("http://me:password@host", "a key in QPEFT_API_KEY"),
    ],
)
def test_bad_addresses_are_refused(url, message, verify):
    assert message in verify(url=url, code=2)["message"]


@pytest.mark.parametrize("name", ["nobody", "n" * 10_000, "a/../b", "\x00"])
def test_name_without_a_folder_needs_one(name, qpeft_cli):
    shown = qpeft_cli(f"verify-served http://localhost --adapter {name}", code=2)
    assert "give its folder with --run" in " ".join(shown.stderr.split())
