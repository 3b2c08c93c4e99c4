"""AdapterPool: logits equal those of each adapter alone, in `qpeft.load` and in stock PEFT."""

import asyncio
import copy
import json
import os
import shutil
import sys
import threading
from collections import OrderedDict
from contextlib import nullcontext, suppress
from functools import partial

import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2ForSequenceClassification
from watched_lock import Watched

import qpeft
from qpeft.core.serving import compact_reader
from qpeft.core.serving import pool as pool_module
from qpeft.core.serving.pool import why_not_mixed
from qpeft.demo import base_path
from qpeft.errors import CheckpointError, ConfigError

LM = {"task_type": "CAUSAL_LM"}
TEXTS = {
    "ada": "Parameters\n----------\nx : array_like\n    Input array.\n\nReturns\n-------\nout : ndarray\n",
    "bob": "Once upon a time there was a king who had three daughters, and the youngest was so beautiful",
    "cyd": "for i in range(10):\n    if i % 2:\n        print(i)\n    else:\n        continue\n",
}
METHODS = {
    "qpa": (qpeft.QPAConfig, {"r": 4, "target_modules": "all-linear", "budget": 0.1}),
    "quantum_peft": (qpeft.QuantumPeftConfig, {"r": 8, "target_modules": ["c_attn"], "share": "type"}),
}
SMALL = {"hidden": (6, 5), "chunk_size": 16, "n_layers": 3, "target_modules": ["c_attn"], "r": 4}


@pytest.fixture(scope="module")
def storyteller():
    return AutoModelForCausalLM.from_pretrained(base_path(), dtype="float32").eval()


@pytest.fixture(scope="module")
def prompts():
    """Three prompts of one length, int64."""
    tokenizer = AutoTokenizer.from_pretrained(base_path())
    ids = [tokenizer(text).input_ids[:12] for text in ("Return the sum of all the values in the given list of numbers",
                                                       "The king said to the youngest of his three lovely daughters",
                                                       "1, 2, 3, 4, 5, 6, 7, 8, 9, 10")]  # fmt: skip
    return torch.tensor(ids)


@pytest.fixture(scope="module", params=METHODS)
def trained(request, storyteller, prompts, tmp_path_factory, adapters):
    """Three adapters trained on different texts, two with equal seeds; the logits of each alone, and of the base."""
    folder, exported = (tmp_path_factory.mktemp(name) for name in ("users", "exported"))
    tokenizer = AutoTokenizer.from_pretrained(base_path())
    kind, options = METHODS[request.param]
    alone = {}
    for index, (name, text) in enumerate(TEXTS.items()):
        ids = tokenizer(text, return_tensors="pt").input_ids
        model = get_peft_model(copy.deepcopy(storyteller), kind(**options, **LM, seed=index // 2))
        adapters.train(model, ids, steps=5, lr=1e-2)
        qpeft.save(model, folder / name)
        qpeft.export(model, exported / name)
        alone[name] = adapters.logits(qpeft.load(copy.deepcopy(storyteller), folder / name), prompts)
    alone["__base__"] = adapters.logits(storyteller, prompts)
    return folder, exported, alone


@pytest.fixture(scope="module")
def served(storyteller, trained):
    return qpeft.AdapterPool(copy.deepcopy(storyteller), trained[0], capacity=2)


def test_logits_equal_those_of_load_and_of_the_exported_adapter(storyteller, prompts, trained, served, adapters):
    _, exported, alone = trained
    assert len({tuple(logits[0, 0, :3].tolist()) for logits in alone.values()}) == 4  # they are different
    for name in [*TEXTS, *reversed(TEXTS)]:  # with two slots, each is evicted and loaded again
        served.activate(name)
        assert torch.equal(adapters.logits(served.model, prompts), alone[name])
    for name in TEXTS:
        stock = PeftModel.from_pretrained(copy.deepcopy(storyteller), exported / name).eval()
        torch.testing.assert_close(adapters.logits(stock, prompts), alone[name], atol=1e-6, rtol=1e-6)
    served.activate("__base__")
    assert torch.equal(adapters.logits(served.model, prompts), alone["__base__"])


@pytest.mark.parametrize("rows", [["ada", "bob", "ada"], ["__base__", "cyd", "bob"], ["cyd"] * 3, ["__base__"] * 3])
def test_rows_of_a_mixed_batch_equal_single_adapters(prompts, trained, served, adapters, rows):
    with torch.no_grad():
        mixed = served.model(input_ids=prompts, adapter_names=served.place(rows)).logits
    for row, name in enumerate(rows):
        torch.testing.assert_close(mixed[row], trained[2][name][row], atol=2e-5, rtol=1e-5)


def test_mixed_batch_generates_the_same_tokens(prompts, served):
    rows, options = ["ada", "__base__", "cyd"], {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    mixed = served.model.generate(
        input_ids=prompts, attention_mask=torch.ones_like(prompts), adapter_names=served.place(rows), **options
    )
    for row, name in enumerate(rows):
        served.activate(name)
        own = prompts[row : row + 1]
        single = served.model.generate(input_ids=own, attention_mask=torch.ones_like(own), **options)
        assert torch.equal(mixed[row], single[0])
    served.activate("__base__")


# -- slots, with tiny models


def adapter(base, folder, seed=0, kind=qpeft.QPAConfig, spread=0.05, **options):
    """A saved adapter with random trained parameters; the base is not changed."""
    model = get_peft_model(copy.deepcopy(base), kind(**{**(SMALL if kind is qpeft.QPAConfig else {}), **LM, **options},
                                                      seed=seed))  # fmt: skip
    with torch.no_grad():
        for parameter in model.base_model.generators.parameters():
            parameter.normal_(0, spread)
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter), alpha=spread)
    qpeft.save(model, folder)
    return model.eval()


def same_gpt2():
    torch.manual_seed(0)
    return tiny_models.gpt2()


@pytest.fixture(name="gpt2")
def same_gpt2_in_every_test():
    """The base model of the adapters in `saved`."""
    return same_gpt2()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Three adapters of the tiny model, of two seeds."""
    folder = tmp_path_factory.mktemp("saved")
    for index in range(3):
        adapter(same_gpt2(), folder / f"user-{index}", seed=index % 2)
    return folder


@pytest.fixture
def users(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "users")


@pytest.fixture
def pool(gpt2, users):
    return qpeft.AdapterPool(gpt2, users, capacity=2)


@settings(max_examples=15)
@given(
    capacity=st.integers(1, 4),
    requests=st.lists(
        st.one_of(st.integers(0, 4), st.lists(st.integers(-1, 4), min_size=1, max_size=4), st.just("none")),
        max_size=12,
    ),
)
def test_any_sequence_of_requests_uses_the_right_adapters(requests, capacity):
    base, folder, answers, ids, adapters = _world()
    pool = qpeft.AdapterPool(copy.deepcopy(base), folder, capacity)
    recent: OrderedDict[str, None] = OrderedDict()  # the model of the pool: names, the least recently used first
    active = "__base__"

    def use(name, keep):
        if name not in recent and len(recent) == capacity:
            del recent[next(other for other in recent if other not in keep)]
        recent[name] = None
        recent.move_to_end(name)

    for request in requests:
        if isinstance(request, list):
            rows = [f"user-{i}" if i >= 0 else "__base__" for i in request]
            wanted = dict.fromkeys(name for name in rows if name != "__base__")
            if len(wanted.keys() | {active} - {"__base__"}) > capacity:
                with pytest.raises(ConfigError, match="different adapters"):
                    pool.place(rows)
                continue
            for name in wanted:
                use(name, wanted.keys() | {active})
            with torch.no_grad():
                found = pool.model(input_ids=ids[: len(rows)], adapter_names=pool.place(rows)).logits
            expected = torch.stack([answers[name][row] for row, name in enumerate(rows)])
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        else:
            active = "__base__" if request == "none" else f"user-{request}"
            if active != "__base__":
                use(active, set())
            pool.activate(active)
        assert torch.equal(adapters.logits(pool.model, ids), answers[active])
        assert (pool.active, pool.resident) == (active, list(recent))


_made = []


def _world():
    """Created once, because hypothesis calls a test repeatedly."""
    return _made[0]


@pytest.fixture(autouse=True, scope="module")
def _make_world(tmp_path_factory, adapters):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    base = AutoModelForCausalLM.from_config(config).eval()
    folder, ids = tmp_path_factory.mktemp("world"), torch.randint(50, (4, 5))
    answers = {"__base__": adapters.logits(base, ids)}
    for index in range(5):
        adapter(base, folder / f"user-{index}", seed=index % 3)
        answers[f"user-{index}"] = adapters.logits(qpeft.load(copy.deepcopy(base), folder / f"user-{index}"), ids)
    _made.append((base, folder, answers, ids, adapters))
    yield
    _made.clear()


def test_only_changed_files_are_read_again(gpt2, users, ids, adapters, monkeypatch):
    plain, pool = copy.deepcopy(gpt2), qpeft.AdapterPool(gpt2, users, capacity=2)
    read, folders = pool._reader.read, []
    monkeypatch.setattr(pool._reader, "read", lambda folder: folders.append(folder.name) or read(folder))
    for _ in range(3):
        pool.activate("user-1")
        pool.place(["user-1", "__base__"])
    assert folders == ["user-1"]
    before = adapters.logits(pool.model, ids)
    again = adapter(plain, users / "user-1", seed=0)  # trained again, from another seed
    pool.activate("user-1")
    assert folders == ["user-1"] * 2
    assert torch.equal(adapters.logits(pool.model, ids), adapters.logits(again, ids))
    assert not torch.equal(adapters.logits(pool.model, ids), before)


def test_replacement_of_equal_size_time_and_inode_is_read_again(gpt2, users, ids, adapters):
    plain, pool = copy.deepcopy(gpt2), qpeft.AdapterPool(gpt2, users, capacity=2)
    pool.activate("user-1")
    folder, kept = users / "user-1", users / "user-1" / "kept"
    kept.mkdir()
    again = adapter(plain, kept, seed=0)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        old = (folder / name).stat()
        (folder / name).write_bytes((kept / name).read_bytes())
        assert (folder / name).stat().st_size == old.st_size
        os.utime(folder / name, ns=(old.st_atime_ns, old.st_mtime_ns))
    pool.activate("user-1")
    assert torch.equal(adapters.logits(pool.model, ids), adapters.logits(again, ids))


def replaced_at(monkeypatch, module, function, folder, other):
    """From now on, the first call of this function replaces `folder` by `other` after it has returned."""
    real = getattr(module, function)

    def replacing(*args, **options):
        found = real(*args, **options)
        if other.exists():
            shutil.rmtree(folder)
            other.rename(folder)
        return found

    monkeypatch.setattr(module, function, replacing)


def test_request_during_a_replacement_is_answered_with_the_new_adapter(gpt2, users, ids, adapters, monkeypatch):
    pool = qpeft.AdapterPool(copy.deepcopy(gpt2), users, capacity=1)
    expected = adapters.logits(adapter(gpt2, users.parent / "new", seed=1), ids)
    replaced_at(monkeypatch, compact_reader, "check_folder", users / "user-0", users.parent / "new")
    pool.activate("user-0")
    assert torch.equal(adapters.logits(pool.model, ids), expected)
    assert len({held.slot for held in pool._resident.values()} | set(pool._free)) == 1


@pytest.mark.parametrize("build", [qpeft.load, lambda base, folder: qpeft.AdapterPool(base, folder.parent)])
def test_config_and_weights_of_different_versions_are_not_loaded(gpt2, users, monkeypatch, build):
    """The new weights have the shapes and the initial values of the old ones, and another factor."""
    folder, new = users / "user-0", users.parent / "new"
    adapter(gpt2, new, lora_alpha=64)
    replaced_at(monkeypatch, PeftConfig, "from_pretrained", folder, new)
    with pytest.raises(CheckpointError, match="replaced while it was read"):
        build(copy.deepcopy(gpt2), folder)


def test_pool_is_not_made_from_two_versions_of_its_first_adapter(gpt2, users, monkeypatch):
    folder, new = users / "user-0", users.parent / "new"
    adapter(gpt2, new, lora_alpha=64)
    replaced_at(monkeypatch, pool_module, "load", folder, new)
    with pytest.raises(CheckpointError, match="replaced while it was read"):
        qpeft.AdapterPool(copy.deepcopy(gpt2), users)


# -- threads


def run_threads(*functions):
    """All at once, with as many switches between them as Python makes; the first error is raised."""
    start, errors = threading.Barrier(len(functions)), []

    def catching(function):
        try:
            start.wait()
            function()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=catching, args=(function,)) for function in functions]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    if errors:
        raise errors[0]


def test_answers_in_many_threads_equal_those_of_one():
    base, folder, answers, ids, _ = _world()
    pool = qpeft.AdapterPool(copy.deepcopy(base), folder, capacity=3)

    def requests(first):
        for index in range(first, first + 6):
            name, other = (f"user-{i % 5}" if i % 6 else "__base__" for i in (index, index + 2))
            with torch.no_grad(), pool.using(name) as arguments:
                assert torch.equal(pool.model(input_ids=ids, **arguments).logits, answers[name])
            rows = [name, other, "__base__", other]
            with torch.no_grad(), pool.using(rows) as arguments:
                found = pool.model(input_ids=ids, **arguments).logits
            expected = torch.stack([answers[row][i] for i, row in enumerate(rows)])
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)

    run_threads(*(partial(requests, first) for first in range(6)))
    assert pool.active == "__base__"


def test_every_adapter_is_in_its_own_slot_after_calls_of_many_threads():
    base, folder, answers, ids, adapters = _world()
    pool = qpeft.AdapterPool(copy.deepcopy(base), folder, capacity=3)

    def calls(first):
        for index in range(first, first + 20):
            pool.activate(f"user-{index % 5}")
            pool.place([f"user-{index % 3}"])

    run_threads(*(partial(calls, first) for first in range(4)))
    assert len({held.slot for held in pool._resident.values()} | set(pool._free)) == 3
    for name in [*pool.resident, *answers]:
        pool.activate(name)
        assert torch.equal(adapters.logits(pool.model, ids), answers[name])


@pytest.mark.parametrize(
    "call",
    [
        lambda pool: pool.activate("user-2"),
        lambda pool: pool.place(["user-2", "user-3"]),
        lambda pool: pool.using("user-3").__enter__(),
    ],
)
def test_requests_of_other_threads_wait_until_the_answer(call):
    base, folder, answers, ids, adapters = _world()
    pool = qpeft.AdapterPool(copy.deepcopy(base), folder, capacity=2)
    pool._lock = Watched()

    def other():
        call(pool)
        pool._lock.waited.set()

    with pool.using("user-1"):
        thread = threading.Thread(target=other)
        thread.start()
        pool._lock.waited.wait()
        assert thread.is_alive()
        assert torch.equal(adapters.logits(pool.model, ids), answers["user-1"])
        assert pool.resident == ["user-1"]
    thread.join()


def test_using_restores_the_active_adapter(pool, ids, adapters):
    pool.activate("user-0")
    before = adapters.logits(pool.model, ids)
    for names in ("user-1", "__base__", ["user-1"] * 3):
        with pool.using(names):
            pass
        assert pool.active == "user-0"
        assert torch.equal(adapters.logits(pool.model, ids), before)
    with pytest.raises(ValueError, match="stop"), pool.using("user-2"):
        raise ValueError("stop")
    assert torch.equal(adapters.logits(pool.model, ids), before)


# -- a block of `using` keeps its adapters


SELECTIONS = {
    "using": lambda pool, names: pool.using(names).__enter__(),
    "activate": lambda pool, names: pool.activate(names if isinstance(names, str) else names[0]),
    "place": lambda pool, names: pool.place([names] if isinstance(names, str) else names),
}


def logits_of(pool, ids, arguments):
    with torch.no_grad():
        return pool.model(input_ids=ids, **arguments).logits


def expected_of(names, stock):
    """The rows of `stock`, the logits of each exported adapter alone in stock PEFT."""
    return torch.stack([stock[name][row] for row, name in enumerate([names] * 4 if isinstance(names, str) else names)])


def assert_equal_to_stock(pool, ids, arguments, names, stock):
    torch.testing.assert_close(logits_of(pool, ids, arguments), expected_of(names, stock), atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def stock():
    """Logits of each exported adapter in stock PEFT, and of the base model, by name."""
    base, folder, answers, ids, adapters = _world()
    found = {"__base__": adapters.logits(base, ids)}
    for name in answers.keys() - found.keys():
        exported = folder.parent / "exported" / name
        qpeft.export(qpeft.load(copy.deepcopy(base), folder / name), exported)
        found[name] = adapters.logits(PeftModel.from_pretrained(copy.deepcopy(base), exported).eval(), ids)
    assert len({tuple(logits[0, 0, :3].tolist()) for logits in found.values()}) == 6  # they are different
    return found


def new_pool(capacity):
    base, folder, _, ids, _ = _world()
    return qpeft.AdapterPool(copy.deepcopy(base), folder, capacity), ids


@pytest.mark.parametrize("inner", ["user-3", ["user-3", "user-4", "__base__", "user-3"]], ids=str)
@pytest.mark.parametrize("outer", ["user-1", ["user-1", "user-2", "__base__", "user-1"], "__base__"], ids=str)
@pytest.mark.parametrize("select", SELECTIONS.values(), ids=SELECTIONS)
def test_selection_in_a_block_is_refused_and_the_block_keeps_its_adapters(stock, select, outer, inner):
    pool, ids = new_pool(capacity=3)
    pool.activate("user-0")
    with pool.using(outer) as arguments:
        with pytest.raises(ConfigError, match="leave the block first"):
            select(pool, inner)
        assert_equal_to_stock(pool, ids, arguments, outer, stock)
    assert_equal_to_stock(pool, ids, {}, "user-0", stock)
    with pool.using("user-3") as arguments:
        assert_equal_to_stock(pool, ids, arguments, "user-3", stock)


def test_block_can_be_entered_after_an_error_in_one(stock):
    pool, ids = new_pool(capacity=2)
    for names in ("user-1", ["user-1", "user-2", "user-1", "user-2"]):
        with pytest.raises(ValueError, match="stop"), pool.using(names):
            raise ValueError("stop")
        with pytest.raises(ConfigError, match="no adapter"), pool.using("user-17"):
            pass
        with pool.using("user-3") as arguments:
            assert_equal_to_stock(pool, ids, arguments, "user-3", stock)


@pytest.mark.parametrize("after", ["user-1", "__base__", ["user-1", "user-2", "user-1", "__base__"]], ids=str)
@pytest.mark.parametrize("places", [True, False])
def test_request_after_a_failed_forward_pass_has_its_own_adapters(stock, places, after):
    """PEFT would compute all later requests with the adapters of the failed rows."""
    pool, ids = new_pool(capacity=3)
    wrong = torch.full_like(ids, 1000)  # beyond the vocabulary
    rows = ["user-0", "__base__", "user-3", "user-0"]
    arguments = nullcontext({"adapter_names": pool.place(rows)}) if places else pool.using(rows)
    with pytest.raises(IndexError), arguments as found:
        pool.model(input_ids=wrong, **found)
    assert_equal_to_stock(pool, ids, {}, "__base__", stock)
    with pool.using(after) as arguments:
        assert_equal_to_stock(pool, ids, arguments, after, stock)


def test_coroutine_that_meets_the_block_of_another_is_refused(stock):
    pool, ids = new_pool(capacity=2)

    async def answer(name):
        with pool.using(name) as arguments:
            await asyncio.sleep(0)  # the other begins
            assert_equal_to_stock(pool, ids, arguments, name, stock)
        return name

    async def both():
        return await asyncio.gather(answer("user-1"), answer("user-2"), return_exceptions=True)

    first, second = asyncio.run(both())
    assert (first, type(second)) == ("user-1", ConfigError)


def test_coroutines_with_threads_are_all_served(stock):
    pool, ids = new_pool(capacity=2)

    def answer(name):
        with pool.using(name) as arguments:
            assert_equal_to_stock(pool, ids, arguments, name, stock)

    async def all_of_them():
        await asyncio.gather(*(asyncio.to_thread(answer, f"user-{i % 5}") for i in range(12)))

    asyncio.run(all_of_them())


def stream(pool, ids, name, stock):
    with pool.using(name) as arguments:
        for _ in range(3):
            yield assert_equal_to_stock(pool, ids, arguments, name, stock)


def test_generator_suspended_in_a_block_keeps_its_adapter(stock):
    pool, ids = new_pool(capacity=2)
    first, second = (stream(pool, ids, name, stock) for name in ("user-1", "user-2"))
    next(first)
    with pytest.raises(ConfigError, match="leave the block first"):
        next(second)
    list(first)  # the rest
    list(stream(pool, ids, "user-2", stock))
    closed = stream(pool, ids, "user-3", stock)
    next(closed)
    closed.close()
    assert_equal_to_stock(pool, ids, {}, "__base__", stock)
    list(stream(pool, ids, "user-4", stock))


def test_block_may_end_in_another_thread(stock):
    """As with a server that runs each step of a generator in any thread of a pool of threads."""
    pool, ids = new_pool(capacity=2)
    streamed = stream(pool, ids, "user-1", stock)
    next(streamed)
    thread = threading.Thread(target=list, args=(streamed,))
    thread.start()
    thread.join()
    assert next(streamed, "ended") == "ended"
    with pool.using("user-2") as arguments:
        assert_equal_to_stock(pool, ids, arguments, "user-2", stock)


def test_files_replaced_during_a_block_are_used_from_the_next_on(gpt2, users, ids, adapters):
    plain, pool = copy.deepcopy(gpt2), qpeft.AdapterPool(gpt2, users, capacity=2)
    with pool.using("user-1"):
        before = adapters.logits(pool.model, ids)
        again = adapter(plain, users / "user-1", seed=0)
        assert torch.equal(adapters.logits(pool.model, ids), before)
    with pool.using("user-1"):
        assert torch.equal(adapters.logits(pool.model, ids), adapters.logits(again, ids))


NAMES = st.sampled_from(["__base__", *(f"user-{i}" for i in range(5))])
CHOICES = st.one_of(NAMES, st.lists(NAMES, min_size=4, max_size=4))
SELECTION = st.tuples(st.sampled_from([*SELECTIONS]), CHOICES)
REQUESTS = st.tuples(st.sampled_from(["error", *SELECTIONS]), CHOICES, st.lists(SELECTION, max_size=2))


@settings(max_examples=40)
@given(capacity=st.integers(1, 3), scripts=st.lists(st.lists(REQUESTS, max_size=6), min_size=1, max_size=3))
def test_any_requests_of_any_threads_are_answered_by_the_right_adapters(stock, capacity, scripts):
    pool, ids = new_pool(capacity)

    def serve(what, names, inner):
        with pool.using(names) as arguments:
            for kind, others in inner:
                with pytest.raises(ConfigError, match="leave the block first"):
                    SELECTIONS[kind](pool, others)
            assert_equal_to_stock(pool, ids, arguments, names, stock)
            if what == "error":
                raise ZeroDivisionError

    def run(script):
        for what, names, inner in script:
            wanted = {names} if isinstance(names, str) else {*names}
            try:
                with suppress(ZeroDivisionError):
                    if what in ("using", "error"):
                        serve(what, names, inner)
                    else:
                        SELECTIONS[what](pool, names)
            except ConfigError:  # with the active adapter, which another thread may have chosen, too many
                assert len(wanted - {"__base__"}) >= capacity

    run_threads(*(partial(run, script) for script in scripts))
    assert_equal_to_stock(pool, ids, {}, pool.active, stock)
    for name in [*pool.resident, *stock]:
        pool.activate(name)
        assert_equal_to_stock(pool, ids, {}, name, stock)


# -- kinds of adapters


@pytest.mark.parametrize(
    ("kind", "options", "mixes"),
    [
        (qpeft.QPAConfig, {"use_dora": True}, False),
        (qpeft.QPAConfig, {"modules_to_save": ["lm_head"]}, True),
        (qpeft.QPAConfig, {"target_modules": ["wte"], "feature_source": "none"}, True),
        (qpeft.QuantumPeftConfig, {"r": 4, "target_modules": "all-linear", "bits": 4, "group_size": 32}, True),
        (qpeft.QuantumPeftConfig, {"r": 4, "target_modules": ["c_attn"], "modules_to_save": ["ln_f", "ln_1"]}, False),
        (qpeft.QuantumPeftConfig, {"r": 4, "target_modules": ["c_attn"], "frame": "gradient", "frame_rank": 8}, True),
    ],
)
def test_pool_of_each_kind_of_adapter(gpt2, ids, adapters, tmp_path, kind, options, mixes):
    plain = copy.deepcopy(gpt2)
    for index in range(3):
        if options.get("frame"):
            model = get_peft_model(copy.deepcopy(plain), kind(**LM, **options))
            qpeft.fit_frames(model, [{"input_ids": (ids + index) % 50, "labels": (ids + index) % 50}])
            qpeft.save(adapters.train(model, ids, lr=1e-2), tmp_path / f"{index}")
        else:
            adapter(plain, tmp_path / f"{index}", index, kind, **options)
    expected = [adapters.logits(qpeft.load(copy.deepcopy(plain), tmp_path / f"{i}"), ids) for i in range(3)]
    assert (why_not_mixed(plain, kind(**LM, **options)) is None) == mixes
    pool = qpeft.AdapterPool(gpt2, tmp_path, capacity=2)
    for index in (0, 1, 2, 1, 0):
        pool.activate(str(index))
        assert torch.equal(adapters.logits(pool.model, ids), expected[index])
        assert not torch.equal(expected[index], adapters.logits(plain, ids))
    pool.activate("__base__")
    assert torch.equal(adapters.logits(pool.model, ids), adapters.logits(plain, ids))
    if mixes:
        with torch.no_grad():
            mixed = pool.model(input_ids=ids, adapter_names=pool.place(["2", "0", "__base__"])).logits
        torch.testing.assert_close(mixed[0], expected[2][0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(mixed[1], expected[0][1], atol=1e-6, rtol=1e-5)
    else:  # PEFT does not support mixing them
        with pytest.raises(ConfigError, match=r"does not mix adapters with (DoRA|a trained copy of LayerNorm)"):
            pool.place(["2", "0", "__base__"])
        if options.get("use_dora"):
            assert torch.equal(
                pool.model(input_ids=ids, adapter_names=pool.place(["__base__"] * 3)).logits,
                adapters.logits(plain, ids),
            )
        else:
            with pytest.raises(ConfigError, match="a trained copy of LayerNorm"):
                pool.place(["__base__"] * 3)
        with pool.using("2"):
            assert torch.equal(adapters.logits(pool.model, ids), expected[2])
        with pytest.raises((ValueError, TypeError)), torch.no_grad():
            pool.model(input_ids=ids, adapter_names=["slot0", "slot1", "__base__"])


def test_classifiers_with_different_heads(tmp_path, adapters):
    config = GPT2Config(
        vocab_size=50, n_positions=32, n_embd=16, n_layer=1, n_head=2, num_labels=3, pad_token_id=0, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    plain, ids = GPT2ForSequenceClassification(config).eval(), torch.randint(50, (2, 6))
    for name in "ab":
        adapter(plain, tmp_path / name, task_type="SEQ_CLS")
    expected = {n: adapters.logits(qpeft.load(copy.deepcopy(plain), tmp_path / n), ids) for n in "ab"}
    pool = qpeft.AdapterPool(plain, tmp_path, capacity=1)
    for name in "aba":
        pool.activate(name)
        assert torch.equal(adapters.logits(pool.model, ids), expected[name])


# -- errors


@pytest.mark.parametrize("name", ["user-17", "", ".", "..", "../users/user-1", "user-1/", "/etc", "a\0b", ".hidden", 3,
                                  "x" * 300, "\ud800", ["a"], None])  # fmt: skip
def test_unknown_names_raise(pool, name):
    with pytest.raises(ConfigError, match="has no adapter"):
        pool.activate(name)
    with pytest.raises(ConfigError, match="has no adapter"):
        pool.place(["user-1", name])


def test_errors_do_not_name_other_adapters(pool):
    with pytest.raises(ConfigError, match=r"it has 3 others$"):
        pool.activate("user1")
    pool.activate("user-0")
    with pytest.raises(ConfigError, match="2 different adapters in addition to the active one") as refused:
        pool.place(["user-1", "user-2"])
    assert "user-0" not in str(refused.value)


@pytest.mark.parametrize("names", ["user-1", None, 3])
def test_place_requires_a_list_of_names(pool, names):
    with pytest.raises(ConfigError, match="place takes a list of names"):
        pool.place(names)


def test_adapter_named_base_raises(gpt2, users):
    pool = qpeft.AdapterPool(copy.deepcopy(gpt2), users)
    shutil.copytree(users / "user-1", users / "__base__")
    assert pool.names == ["user-0", "user-1", "user-2"]
    with pytest.raises(ConfigError, match=r"'__base__' means no adapter.*rename"):
        qpeft.AdapterPool(gpt2, users)


def test_deleted_adapter_raises(pool, users):
    pool.activate("user-1")
    shutil.rmtree(users / "user-1")
    with pytest.raises(ConfigError, match="has no adapter 'user-1'"):
        pool.activate("user-1")


def test_run_folder_is_refused_with_what_to_do(pool, users):
    (users / "run").mkdir()
    shutil.copytree(users / "user-1", users / "run" / "adapter")
    with pytest.raises(
        ConfigError, match="'run' is a run folder; move it out of the pool's folder, and copy its folder adapter there"
    ):
        pool.activate("run")


def _edit(folder, **changes):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))


def _truncate(folder):
    os.truncate(folder / "adapter_model.safetensors", 200)


def _change_tensor(folder, ending, change):
    file = folder / "adapter_model.safetensors"
    state = load_file(file)
    key = next(key for key in state if key.endswith(ending))
    save_file({**state, key: change(state[key])}, file)
    _edit(folder, weights_sha256=None)


def _exchange(folder):
    shutil.copy(folder.parent / "user-0" / "adapter_model.safetensors", folder)


DAMAGES = {
    "exchanged": (_exchange, "SHA-256"),
    "overflow": (lambda folder: _change_tensor(folder, "tau", lambda t: t.fill_(1e38)), "NaN or Inf"),
    "truncated": (_truncate, "damaged or cut off"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
    "no JSON": (lambda folder: (folder / "adapter_config.json").write_text("{"), "not the JSON"),
    "other seed": (lambda folder: _edit(folder, seed=7), "initial values drawn from seed 7"),
    "other seed and hash": (lambda folder: _edit(folder, seed=7, start_hash=None), "other initial values"),
    "seed of no number": (lambda folder: _edit(folder, seed=[1]), "seed"),
    "negative seed": (lambda folder: _edit(folder, seed=-1), "seed"),
    "newer format": (lambda folder: _edit(folder, format_version=99), "newer"),
    "other setting": (lambda folder: _edit(folder, activation="gelu"), "activation='gelu' instead of 'silu'"),
    "other tensors": (lambda folder: _edit(folder, generated=[["h.0.lora_A.weight", [4, 8]]]), "another base model"),
    "not finite": (lambda folder: _change_tensor(folder, "tau", lambda t: t.fill_(torch.nan)), "NaN or Inf"),
    "other shape": (lambda folder: _change_tensor(folder, "tau", lambda t: t[:1].clone()), "shape"),
    "fingerprint": (lambda folder: _change_tensor(folder, "fingerprint", lambda t: t + 1), "other initial values"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folder_raises_and_changes_nothing(pool, users, ids, adapters, damage):
    change, words = DAMAGES[damage]
    pool.activate("user-2")
    before = adapters.logits(pool.model, ids)
    change(users / "user-1")
    with pytest.raises((CheckpointError, ConfigError), match=words):
        pool.activate("user-1")
    assert (pool.active, pool.resident) == ("user-2", ["user-2"])
    assert torch.equal(adapters.logits(pool.model, ids), before)


def test_damaged_first_folder_is_skipped(gpt2, users):
    _truncate(users / "user-0")
    pool = qpeft.AdapterPool(gpt2, users, capacity=2)
    pool.activate("user-1")
    with pytest.raises(CheckpointError, match=r"user-0.*damaged"):
        pool.activate("user-0")


def test_adapters_with_other_settings_raise_with_the_difference(gpt2, users):
    adapter(gpt2, users / "wide", r=8)
    adapter(gpt2, users / "more", target_modules=["c_attn", "c_fc"])
    adapter(gpt2, users / "other", kind=qpeft.QuantumPeftConfig, target_modules=["c_attn"])
    adapter(gpt2, users / "dropped", lora_dropout=0.1)  # matters in training alone
    pool = qpeft.AdapterPool(gpt2, users, capacity=2)
    with pytest.raises(CheckpointError, match=r"'wide' cannot be served.*r=8 instead of 4"):
        pool.activate("wide")
    with pytest.raises(CheckpointError, match=r"target_modules=\['c_attn', 'c_fc'\] instead of \['c_attn'\]"):
        pool.activate("more")
    with pytest.raises(CheckpointError, match="peft_type='QPEFT_QUANTUM_PEFT' instead of 'QPEFT_QPA'"):
        pool.activate("other")
    pool.activate("dropped")


def test_order_of_saved_module_names_does_not_matter(gpt2, tmp_path):
    for name in "ab":
        adapter(gpt2, tmp_path / name, target_modules=["c_attn", "c_fc"])
    _edit(tmp_path / "b", target_modules=["c_fc", "c_attn"])
    _edit(tmp_path / "a", target_modules=["c_attn", "c_fc"])
    qpeft.AdapterPool(gpt2, tmp_path).activate("b")


def test_adapter_saved_without_frames_raises(gpt2, ids, tmp_path):
    for name, stored in (("a", True), ("b", False)):  # the same frames, so that serving b could go well by chance
        options = {"r": 4, "target_modules": ["c_attn"], "frame": "gradient", "frame_rank": 8, "store_frames": stored}
        model = get_peft_model(copy.deepcopy(gpt2), qpeft.QuantumPeftConfig(**LM, **options))
        qpeft.fit_frames(model, [{"input_ids": ids, "labels": ids}])
        qpeft.save(model, tmp_path / name)
    pool = qpeft.AdapterPool(copy.deepcopy(gpt2), tmp_path)
    with pytest.raises(ConfigError, match=r"'b' cannot be served.*without the frames"):
        pool.activate("b")


def test_another_base_model_raises_and_is_unchanged(llama, users):
    names = [name for name, _ in llama.named_parameters()]
    with pytest.raises(CheckpointError, match="another base model"):
        qpeft.AdapterPool(llama, users)
    assert [name for name, _ in llama.named_parameters()] == names


def test_other_kinds_of_adapters_and_empty_folders_raise(gpt2, users, tmp_path):
    attached = get_peft_model(copy.deepcopy(gpt2), PrefixTuningConfig(**LM, num_virtual_tokens=4))
    qpeft.save(
        qpeft.attach(attached, qpeft.QPAGeneratorConfig(hidden=(3, 2), chunk_size=16)), tmp_path / "attached" / "a"
    )
    stock = get_peft_model(copy.deepcopy(gpt2), LoraConfig(**LM, r=2, target_modules=["c_attn"]))
    stock.save_pretrained(tmp_path / "stock" / "a")
    for kind in ("attached", "stock"):
        with pytest.raises(ConfigError, match="QPA and Quantum-PEFT"):
            qpeft.AdapterPool(gpt2, tmp_path / kind)
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match="contains no adapter folder"):
            qpeft.AdapterPool(gpt2, folder)
    for capacity in (0, -1, 1.5):
        with pytest.raises(ConfigError, match="capacity"):
            qpeft.AdapterPool(gpt2, users, capacity)
    with pytest.raises(ConfigError, match="has an adapter already"):
        qpeft.AdapterPool(stock, users)


def test_merged_adapter_raises(pool):
    pool.activate("user-1")
    pool.model.merge_adapter()
    for call in (lambda: pool.activate("user-2"), lambda: pool.place(["user-2"])):
        with pytest.raises(ConfigError, match="merged"):
            call()
    pool.model.unmerge_adapter()
    pool.activate("user-2")


def test_parameters_of_a_pool_are_frozen(pool, ids):
    pool.activate("user-1")
    assert not any(parameter.requires_grad for parameter in pool.model.parameters())
    assert not pool.model(input_ids=ids).logits.requires_grad


def test_tensors_created_in_inference_mode_do_not_prevent_training(gpt2, users, ids, adapters):
    plain = copy.deepcopy(gpt2)
    pool = qpeft.AdapterPool(gpt2, users, capacity=1)
    with torch.inference_mode():
        pool.place(["user-1"])  # from a seed that is drawn here
    adapters.train(get_peft_model(plain, qpeft.QPAConfig(**SMALL, **LM)), ids, steps=1)
