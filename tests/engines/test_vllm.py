"""Compact adapters of SmolLM2, served by name in a vLLM server on the CPU: `nox -s vllm`.

One server, started twice, with ten customers of one frame file. What it answers is compared with
the adapters in transformers, when they were made: greedy tokens and log-probabilities.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from typing import NamedTuple

import pytest
import torch
from peft import get_peft_model
from snippets import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer
from variants import move

import qpeft
from qpeft_lab import revisions

BASE = ROOT / "build" / "smollm2"
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(find_spec("vllm") is None, reason="`nox -s vllm` installs vLLM"),
    pytest.mark.skipif(not BASE.is_dir(), reason="`qpeft base smollm2` builds SmolLM2"),
]
CUSTOMERS = [f"customer-{number}" for number in range(10)]
OTHERS = ["replacement", "late", "damaged"]
PROMPTS = ["The capital of France is", "Once upon a time there was"]
TEXT = "The Blue Spice is a pub near the riverside. It serves French food and has a high rating."
N_TOKENS = 6
N_LIKELY = 5
SPREAD = 0.005  # of trained values, from one customer to the next
TOLERANCE = 1e-3  # nats; vLLM adds in another order
ADAPTER = {
    "target_modules": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
    "layers_to_transform": [0, 15, 29],
    "task_type": "CAUSAL_LM",
    "r": 4,
}
FRAMED = {"frame": "gradient", "frame_rank": 8, "share": "type", "bits": 16, "lambda_bits": 16}


class Answer(NamedTuple):
    """A greedy continuation."""

    tokens: list[int]
    likely: list[dict[int, float]]  # log-probabilities by token, for each position


@torch.no_grad()
def greedy(model, prompt_ids):
    """The continuation by `model`, with the log-probabilities of the whole vocabulary."""
    ids = torch.tensor([prompt_ids])  # (1, T)
    rows = []
    for _ in range(N_TOKENS):
        row = model(input_ids=ids).logits[0, -1].log_softmax(-1)
        rows.append(dict(enumerate(row.tolist())))
        ids = torch.cat([ids, row.argmax().view(1, 1)], dim=1)
    return Answer(ids[0, len(prompt_ids) :].tolist(), rows)


def distance(served, local):
    """The largest difference of the log-probabilities that the server gave; infinite if the greedy
    tokens differ.
    """
    if served.tokens != local.tokens:
        return float("inf")
    return max(
        abs(value - row[token])
        for answer, row in zip(served.likely, local.likely, strict=True)
        for token, value in answer.items()
    )


class Server:
    """vLLM with qpeft's resolver for the adapters in `folder / "users"`."""

    def __init__(self, folder):
        self.folder = folder
        self.process = None
        self.port = 0

    def start(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        options = (
            "--enable-lora --max-loras 4 --max-lora-rank 8 --enforce-eager --max-model-len 256"
        )
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options.split()]
        command += ["--dtype", "float32", "--model", BASE, "--served-model-name", "base"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        settings = {
            "QPEFT_ADAPTERS": str(self.folder / "users"),
            "QPEFT_CACHE": str(self.folder / "cache"),
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **settings},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while self.call("/health")[0] != 200:
            assert self.process.poll() is None, (self.folder / "log").read_text()[-4000:]
            time.sleep(1)

    def stop(self):
        self.process.terminate()
        self.process.wait()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # workers that are left

    def call(self, path, fields=None):
        """Status and text of the answer; status 0 if there is no server."""
        body = fields and json.dumps(fields).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers)
        try:
            with urllib.request.urlopen(request) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except urllib.error.URLError:
            return 0, ""

    def complete(self, name, prompt):
        """Status, and the answer or the text of the refusal."""
        fields = {"model": name, "prompt": prompt, "max_tokens": N_TOKENS, "temperature": 0}
        more = {"logprobs": N_LIKELY, "return_tokens_as_token_ids": True, "ignore_eos": True}
        status, text = self.call("/v1/completions", fields | more)
        if status != 200:
            return status, text
        given = json.loads(text)["choices"][0]["logprobs"]
        likely = [
            {token_id(name): value for name, value in row.items()} for row in given["top_logprobs"]
        ]
        return status, Answer([token_id(name) for name in given["tokens"]], likely)

    def unload(self, name):
        status, text = self.call("/v1/unload_lora_adapter", {"lora_name": name})
        assert status == 200, text


def token_id(name):
    return int(name.removeprefix("token_id:"))


class Made(NamedTuple):
    """A folder with adapters, and what they answer to the prompts in transformers."""

    folder: object
    answers: dict[str, list[Answer]]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Ten customers, more adapters of their frame file, one of another base, and the base."""
    folder = tmp_path_factory.mktemp("served")
    users = folder / "users"
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    answers = {"base": [greedy(base, ids) for ids in prompts]}
    model = get_peft_model(base, qpeft.QuantumPeftConfig(**ADAPTER, **FRAMED))
    qpeft.fit_frames(model, [tokenizer(TEXT, return_tensors="pt")], save_to=users / "frames")
    for seed, name in enumerate(CUSTOMERS + OTHERS):
        qpeft.save(move(model, seed, SPREAD), users / name)
        answers[name] = [greedy(model, ids) for ids in prompts]
    weights = users / "damaged" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x77")

    base = model.unload()
    weight = base.model.layers[0].mlp.down_proj.weight
    weight.data = weight.data.roll(1, 0)
    model = get_peft_model(base, qpeft.QuantumPeftConfig(**ADAPTER))
    qpeft.save(move(model, spread=SPREAD), users / "of-another-base")
    return Made(folder, answers)


@pytest.fixture(scope="module")
def server(made):
    running = Server(made.folder)
    try:
        running.start()
        yield running
    finally:
        running.stop()


def refusal(server, name):
    status, text = server.complete(name, PROMPTS[0])
    assert status == 400, text
    return text


def is_served(server, made, name, adapter=None):
    """Whether the server answers to `name` as the adapter does in transformers."""
    replies = [server.complete(name, prompt) for prompt in PROMPTS]
    expected = made.answers[adapter or name]

    assert {status for status, _ in replies} == {200}, replies

    return all(
        distance(answer, local) < TOLERANCE
        for (_, answer), local in zip(replies, expected, strict=True)
    )


def test_ten_customers_of_one_server_get_the_answers_of_their_adapters(server, made):
    """Their requests are interleaved, eight at a time.

    The base is asked alone: in a batch with adapters vLLM 0.32 gives it one of these on a CPU
    (vllm-project/vllm, pull request 48421).
    """
    jobs = [(name, number) for number in range(len(PROMPTS)) for name in CUSTOMERS]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda job: server.complete(job[0], PROMPTS[job[1]]), jobs))
    for (name, number), (status, answer) in zip(jobs, replies, strict=True):
        assert status == 200, answer
        distances = {
            other: distance(answer, made.answers[other][number]) for other in [*CUSTOMERS, "base"]
        }
        assert distances.pop(name) < TOLERANCE, name
        assert min(distances.values()) > 100 * TOLERANCE, (name, distances)

    assert is_served(server, made, "base")


def test_adapters_that_cannot_be_served_are_refused_and_others_are_served(server, made):
    users = made.folder / "users"
    assert "damaged" in refusal(server, "damaged")
    assert "of-another-base" in refusal(server, "of-another-base")

    frames = users / "frames.safetensors"
    elsewhere = made.folder / "elsewhere"
    frames.rename(elsewhere)
    try:
        assert "late" in refusal(server, "late")
        assert is_served(server, made, CUSTOMERS[0])
    finally:
        elsewhere.rename(frames)

    assert is_served(server, made, "late")


def test_replaced_adapter_is_served_as_its_revisions_and_rolled_back(server, made, qpeft_cli):
    name = CUSTOMERS[1]
    folder = made.folder / "users" / name
    assert is_served(server, made, name)

    old = revisions.revision(folder)
    shutil.copytree(folder.with_name("replacement"), folder, dirs_exist_ok=True)
    new = revisions.revision(folder)

    assert is_served(server, made, name)  # vLLM has it in memory
    assert is_served(server, made, f"{name}@{new}", "replacement")
    assert is_served(server, made, f"{name}@{old}", name)

    server.unload(name)
    assert is_served(server, made, name, "replacement")

    qpeft_cli("rollback", folder, "--to", old, code=0)
    server.unload(name)
    assert is_served(server, made, name)
    assert is_served(server, made, f"{name}@{new}", "replacement")


def test_restarted_server_serves_the_exports_in_its_cache(server, made):
    assert is_served(server, made, CUSTOMERS[2])

    folder = made.folder / "users" / CUSTOMERS[2]
    old = revisions.revision(folder)
    shutil.copytree(folder.with_name("replacement"), folder, dirs_exist_ok=True)
    exports = {path: path.stat().st_ino for path in (made.folder / "cache").glob("[!.]*")}
    server.stop()
    server.start()

    assert is_served(server, made, CUSTOMERS[3])
    assert is_served(server, made, CUSTOMERS[2], "replacement")
    assert is_served(server, made, f"{CUSTOMERS[2]}@{old}", CUSTOMERS[2])

    for path, inode in exports.items():
        assert path.stat().st_ino == inode  # not written again
