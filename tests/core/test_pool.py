"""AdapterPool: logits equal those of each adapter alone, in `qpeft.load` and in stock PEFT."""

import copy
import itertools
import os
import pickle
import shutil
import sys
import threading
from collections import OrderedDict

import pytest
import tiny_models
import torch
from accelerate import cpu_offload
from accelerate.utils import set_module_tensor_to_device
from folders import edit_config
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from peft.helpers import DoraCaching
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch.nn.utils.parametrizations import weight_norm
from torch.testing import assert_close

import qpeft
from qpeft.core import pool as pool_module
from qpeft.core import pool_reader
from qpeft.errors import CheckpointError, ConfigError

LM = {"task_type": "CAUSAL_LM"}
SMALL = {"hidden": (6, 5), "chunk_size": 16, "n_layers": 3, "target_modules": ["c_attn"], "r": 4}


# -- slots, with tiny models


def adapter(base, folder, kind=qpeft.QPAConfig, spread=0.05, **options):
    """A saved adapter with random trained parameters; the base is not changed."""
    config = kind(**{**(SMALL if kind is qpeft.QPAConfig else {}), **LM, **options})
    model = get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for parameter in model.base_model.generators.parameters():
            parameter.normal_(0, spread)
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter), alpha=spread)
    qpeft.save(model, folder)
    return model.eval()


@pytest.fixture(scope="module")
def world(tmp_path_factory, adapters):
    """A base, a folder of five adapters, and ids, with the logits of each adapter alone."""
    torch.manual_seed(0)
    base = tiny_models.gpt2(n_layer=1)
    ids = torch.randint(50, (4, 5))
    folder = tmp_path_factory.mktemp("world")
    answers = {"__base__": adapters.logits(base, ids)}
    for index in range(5):
        adapter(base, folder / f"user-{index}", seed=index % 2)
        loaded = qpeft.load(copy.deepcopy(base), folder / f"user-{index}")
        answers[f"user-{index}"] = adapters.logits(loaded, ids)
        qpeft.export(loaded, exported := tmp_path_factory.mktemp("exported"))
        stock = PeftModel.from_pretrained(copy.deepcopy(base), exported).eval()
        assert_close(adapters.logits(stock, ids), answers[f"user-{index}"], atol=1e-6, rtol=1e-6)

    # they are different
    assert len({tuple(logits[0, 0, :3].tolist()) for logits in answers.values()}) == 6

    return base, folder, answers, ids


@pytest.fixture(name="gpt2")
def same_gpt2_in_every_test(world):
    return copy.deepcopy(world[0])


@pytest.fixture
def users(world, tmp_path):
    return shutil.copytree(world[1], tmp_path / "users")


@pytest.fixture
def pool(gpt2, users):
    return qpeft.AdapterPool(gpt2, users, capacity=2)


def test_adapter_of_another_seed_is_right_under_another_default_dtype(world, adapters, tmp_path):
    base, ids = copy.deepcopy(world[0]), world[3]
    users = tmp_path / "users"
    for seed in (0, 1):
        config = qpeft.QuantumPeftConfig(r=2, seed=seed, target_modules=["c_attn"])
        model = get_peft_model(copy.deepcopy(base), config)
        with torch.no_grad():
            for parameter in model.base_model.generators.parameters():
                parameter.add_(0.1)
        qpeft.save(model, users / f"user-{seed}")
    expected = adapters.logits(qpeft.load(copy.deepcopy(base), users / "user-1"), ids)
    torch.set_default_dtype(torch.bfloat16)
    try:
        pool = qpeft.AdapterPool(base, users, capacity=2)
        pool.activate("user-0")
        pool.activate("user-1")
        found = adapters.logits(pool.model, ids)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_close(found, expected, atol=0, rtol=0)


@settings(max_examples=15)
@given(
    capacity=st.integers(1, 4),
    requests=st.lists(
        st.one_of(
            st.integers(0, 4), st.lists(st.integers(-1, 4), min_size=1, max_size=4), st.just("none")
        ),
        max_size=12,
    ),
)
def test_any_sequence_of_requests_uses_the_right_adapters(world, adapters, requests, capacity):
    base, folder, answers, ids = world
    pool = qpeft.AdapterPool(copy.deepcopy(base), folder, capacity)
    recent = OrderedDict()  # the model of the pool: names, the least recently used first
    active = "__base__"
    pool.activate(active)
    earlier = []

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
            expected = torch.stack([answers[name][row] for row, name in enumerate(rows)])
            earlier.append(pool.place(rows))
            assert_close(logits_of_rows(pool, earlier[-1], ids), expected, atol=1e-6, rtol=1e-5)
        else:
            active = "__base__" if request == "none" else f"user-{request}"
            if active != "__base__":
                use(active, set())
            pool.activate(active)
        assert torch.equal(adapters.logits(pool.model, ids), answers[active])
        assert pool.active == active
        assert list(pool._held) == list(recent)
    for rows in earlier:
        if all(row == "__base__" or row.held.adapter in recent for row in rows):
            continue  # in the same slots or, read again, in others
        with pytest.raises(ConfigError, match="call place again"):
            logits_of_rows(pool, rows, ids)


@torch.no_grad()
def logits_of_rows(pool, rows, ids):
    return pool.model(input_ids=ids[: len(rows)], adapter_names=rows).logits


def test_rows_are_refused_when_an_adapter_was_replaced_after_they_were_placed(
    pool, users, ids, world
):
    first = pool.place(["user-0", "__base__"])
    expected = logits_of_rows(pool, first, ids)
    pool.place(["user-1"])

    assert torch.equal(logits_of_rows(pool, first, ids), expected)  # still in its slot

    adapter(world[0], users / "user-0")  # a new version
    pool.activate("user-0")
    for rows in (first, first[:1] * 2, copy.deepcopy(first)):
        with pytest.raises(ConfigError, match="call place again"):
            logits_of_rows(pool, rows, ids)

    assert not torch.equal(logits_of_rows(pool, pool.place(["user-0", "__base__"]), ids), expected)


def test_only_changed_files_are_read_again(pool, monkeypatch):
    reader = pool._reader
    folders = []
    read = reader.read
    monkeypatch.setattr(reader, "read", lambda f, state: folders.append(f.name) or read(f, state))
    for _ in range(3):
        pool.activate("user-1")
        pool.place(["user-1", "__base__"])

    assert folders == ["user-1"]


def test_replacement_of_equal_size_time_and_inode_is_read_again(pool, world, users, ids, adapters):
    pool.activate("user-1")
    folder = users / "user-1"
    kept = users / "user-1" / "kept"
    kept.mkdir()
    again = adapter(world[0], kept)  # trained again
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        old = (folder / name).stat()
        (folder / name).write_bytes((kept / name).read_bytes())
        assert (folder / name).stat().st_size == old.st_size
        os.utime(folder / name, ns=(old.st_atime_ns, old.st_mtime_ns))
    pool.activate("user-1")

    assert torch.equal(adapters.logits(pool.model, ids), adapters.logits(again, ids))


def replaced_at(monkeypatch, module, function, folder, other):
    """From now on, the first call of this function replaces `folder` by `other` after it has
    returned.
    """
    real = getattr(module, function)

    def replacing(*args, **options):
        found = real(*args, **options)
        if other.exists():
            shutil.rmtree(folder)
            other.rename(folder)
        return found

    monkeypatch.setattr(module, function, replacing)


def test_adapter_that_changes_whenever_it_is_read_is_refused(pool, monkeypatch):
    changes = itertools.count()
    monkeypatch.setattr(pool_module, "stamp_of", lambda _: (next(changes),))
    with pytest.raises(CheckpointError, match="'user-0' changed whenever it was read"):
        pool.activate("user-0")


def test_request_during_a_replacement_has_the_new_adapter(gpt2, users, ids, adapters, monkeypatch):
    pool = qpeft.AdapterPool(copy.deepcopy(gpt2), users, capacity=1)
    expected = adapters.logits(adapter(gpt2, users.parent / "new"), ids)
    replaced_at(monkeypatch, pool_reader, "check_folder", users / "user-0", users.parent / "new")
    pool.activate("user-0")
    assert torch.equal(adapters.logits(pool.model, ids), expected)


@pytest.mark.parametrize(
    "after", ["user-1", "__base__", ["user-1", "user-2", "user-1", "__base__"]], ids=str
)
def test_request_after_a_failed_forward_pass_has_its_own_adapters(world, adapters, after):
    """PEFT would compute all later requests with the adapters of the failed rows. Hooks of the user
    remain.
    """
    base, folder, answers, ids = world
    pool = qpeft.AdapterPool(copy.deepcopy(base), folder, capacity=3)
    calls = []
    layer = next(m for m in pool.model.modules() if isinstance(m, BaseTunerLayer))
    layer.register_forward_pre_hook(lambda *_: calls.append(1))

    with pytest.raises(IndexError):  # beyond the vocabulary
        pool.model(
            input_ids=ids + 1000,
            adapter_names=pool.place(["user-0", "__base__", "user-3", "user-0"]),
        )

    for request in ("__base__", after):
        is_one = isinstance(request, str)
        arguments = (
            pool.activate(request) or {} if is_one else {"adapter_names": pool.place(request)}
        )
        logits = adapters.logits(pool.model, {"input_ids": ids, **arguments})
        expected = [
            answers[name][row] for row, name in enumerate([request] * 4 if is_one else request)
        ]
        assert_close(logits, torch.stack(expected), atol=1e-6, rtol=1e-5)
    assert len(calls) == 2


def test_rows_are_only_those_that_place_returned(pool, ids):
    for rows in (["slot0", "__base__"], [str(row) for row in pool.place(["user-0", "__base__"])]):
        with pytest.raises(ConfigError, match="that place returned"):
            logits_of_rows(pool, rows, ids)


def test_calls_inside_a_call_keep_its_adapters(pool, ids):
    """From a hook of a layer, as a processor of logits in `generate` may do; `pool` has two slots."""
    rows = pool.place(["user-0", "user-1"])
    inner = pool.place(["user-1"])
    expected = [logits_of_rows(pool, rows, ids), logits_of_rows(pool, inner, ids)]
    found = []

    def call(*_):
        handle.remove()
        found.append(logits_of_rows(pool, inner, ids))
        for request in (lambda: pool.place(["user-2"]), lambda: pool.activate("user-2")):
            with pytest.raises(ConfigError, match="running"):
                request()

    block = pool.model.base_model.model.transformer.h[0]
    handle = block.register_forward_hook(call)  # later layers follow
    outer = logits_of_rows(pool, rows, ids)

    assert torch.equal(outer, expected[0])
    assert torch.equal(found[0], expected[1])

    pool.place(["user-2"])


def in_a_thread(action):
    """Run `action` in another thread; its exceptions are warnings, and so errors."""
    thread = threading.Thread(target=action)
    thread.start()
    thread.join()


# -- requests inside a running call


def inside_a_call(pool, ids, action, **options):
    """Call the model, and `action` after its attention, before the feed-forward block."""
    errors = []

    def call(*_):
        handle.remove()
        try:
            action()
        except ConfigError as error:
            errors.append(str(error))

    handle = pool.model.base_model.model.transformer.h[0].attn.c_attn.register_forward_pre_hook(
        call
    )
    with torch.no_grad():
        return pool.model(input_ids=ids, **options).logits, errors


def test_activate_inside_a_running_call_is_refused_p1(pool, world):
    _, _, answers, ids = world
    pool.activate("user-0")
    for name in ("user-1", "user-0", "__base__"):
        found, errors = inside_a_call(pool, ids, lambda name=name: pool.activate(name))
        assert torch.equal(found, answers["user-0"])
        assert "running" in errors[0]

    assert pool.active == "user-0"


def test_place_inside_a_running_call_keeps_the_active_adapter_p1(pool, world):
    _, _, answers, ids = world
    pool.activate("user-0")
    found, errors = inside_a_call(
        pool, ids, lambda: (pool.place(["user-1"]), pool.place(["user-2"]))
    )

    assert errors == []
    assert torch.equal(found, answers["user-0"])


def test_plain_call_inside_a_call_with_rows_is_refused_p1(pool, world):
    """PEFT would compute it with the rows of the outer call."""
    _, _, answers, ids = world
    rows = pool.place(["user-0"] * 4)
    found, errors = inside_a_call(pool, ids, lambda: pool.model(input_ids=ids), adapter_names=rows)
    torch.testing.assert_close(found, answers["user-0"])
    assert "adapter_names" in errors[0]


PARTS = ["", ".model", ".model.transformer", ".model.transformer.h.0.attn.c_attn"]


@pytest.mark.parametrize("with_rows", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_base_called_without_the_pool_is_refused_p2(pool, world, part, with_rows):
    """It has no lock and no adapter; from another thread also during a call of the pool."""
    pool.activate("user-0")
    rows = pool.place(["user-0"] * 4) if with_rows else None
    base = pool.model.get_submodule(f"base_model{part}")
    inputs = torch.zeros(4, 16) if part.endswith("attn") else world[3]

    def call():
        with pytest.raises(ConfigError, match=r"call pool\.model"):
            base(inputs)

    call()
    answer, errors = inside_a_call(
        pool, world[3], lambda: in_a_thread(call), **({"adapter_names": rows} if rows else {})
    )

    assert errors == []
    torch.testing.assert_close(answer, world[2]["user-0"])


# -- threads and interruptions


def test_threads_without_a_lock_get_their_own_answers_p2(pool, world, adapters):
    _, _, answers, ids = world
    wrong = []
    barrier = threading.Barrier(4)

    def serve(first):
        barrier.wait()
        for step in range(25):
            name = f"user-{(first + step) % 4}"
            pool.activate(name)
            if not torch.equal(adapters.logits(pool.model, ids), answers[name]):
                wrong.append(name)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # many switches between threads, also on one core
    threads = [threading.Thread(target=serve, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)

    assert wrong == []

    pool.activate("user-1")
    assert torch.equal(adapters.logits(pool.model, ids), answers["user-1"])


def test_rows_placed_in_two_threads_p2(pool, world):
    """The pool has two slots. The second thread takes both between `place` and the call of the first."""
    _, _, answers, ids = world
    barrier = threading.Barrier(2, timeout=100)
    asked = ["user-0", "user-1", "__base__"], ["user-2", "user-3", "user-2"]
    answered = []

    def second():
        barrier.wait()
        answered.append(logits_of_rows(pool, pool.place(asked[1]), ids))
        barrier.wait()

    thread = threading.Thread(target=second)
    thread.start()
    rows = pool.place(asked[0])
    barrier.wait()
    barrier.wait()

    with pytest.raises(ConfigError, match="call place again"):
        logits_of_rows(pool, rows, ids)

    answered.insert(0, logits_of_rows(pool, pool.place(asked[0]), ids))
    thread.join()
    for names, logits in zip(asked, answered, strict=True):
        expected = torch.stack([answers[name][row] for row, name in enumerate(names)])
        torch.testing.assert_close(logits, expected)


def test_thread_that_activated_nothing_is_refused_p2(pool, world):
    pool.activate("user-0")
    errors = []

    def call():
        try:
            pool.model(input_ids=world[3])
        except ConfigError as error:
            errors.append(str(error))

    in_a_thread(call)

    assert "this thread has activated no adapter" in errors[0]


def test_rows_that_are_not_given_to_the_call_are_not_taken_for_none(pool, world, adapters):
    assert torch.equal(adapters.logits(pool.model, world[3]), world[2]["__base__"])
    pool.place(["user-0"])
    with pytest.raises(ConfigError, match=r"activated no adapter.*give the call adapter_names"):
        adapters.logits(pool.model, world[3])

    pool.activate("user-1")  # is asked for, so it remains
    pool.place(["user-0"])
    assert torch.equal(adapters.logits(pool.model, world[3]), world[2]["user-1"])


def interrupted_at(line, action):
    """Whether Ctrl-C at the n-th line of the pool's code interrupted the action."""
    left = line

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename not in (pool_module.__file__, pool_reader.__file__):
            return None
        left -= event == "line"
        if left == 0 and event == "line":
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        action()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.mark.parametrize("stride", [13, pytest.param(1, marks=pytest.mark.long)])
def test_interruption_at_any_line_poisons_no_later_call_p2(pool, world, adapters, stride):
    _, _, answers, ids = world

    def requests():
        pool.activate("user-2")
        pool.activate("user-0")
        with torch.no_grad():
            pool.model(input_ids=ids)
        logits_of_rows(pool, pool.place(["user-1", "__base__", "user-0"]), ids)

    line = 1
    while interrupted_at(line, requests):
        line += stride
        logits = adapters.logits(pool.model, ids)
        assert torch.equal(logits, answers[pool.active]), line
        for name in ("user-3", "__base__", "user-1"):
            pool.activate(name)
            assert torch.equal(adapters.logits(pool.model, ids), answers[name]), line

    assert line > 150


# -- kinds of adapters


@pytest.mark.parametrize(
    "kind, options, mixes",
    [
        (qpeft.QPAConfig, {"use_dora": True}, False),
        (qpeft.QPAConfig, {"modules_to_save": ["lm_head"]}, True),
        (qpeft.QPAConfig, {"target_modules": ["wte"], "feature_source": "none"}, True),
        (qpeft.QuantumPeftConfig, {"r": 4, "target_modules": "all-linear", "bits": 4}, True),
        (qpeft.QuantumPeftConfig, {"r": 4, "target_modules": ["c_attn"], "frame": "weights"}, True),
        (qpeft.QuantumPeftConfig, {"r": 4, "target_modules": ["c_attn"], "frame": "random"}, True),
        (qpeft.SoRAConfig, {"r": 4, "target_modules": "all-linear", "shrink_budget": 0}, True),
        (
            qpeft.QuantumPeftConfig,
            {"r": 4, "target_modules": ["c_attn"], "modules_to_save": ["ln_f", "ln_1"]},
            False,
        ),
    ],
)
def test_pool_of_each_kind_of_adapter(gpt2, ids, adapters, tmp_path, kind, options, mixes):
    plain = copy.deepcopy(gpt2)
    for index in range(3):
        adapter(plain, tmp_path / f"{index}", kind, **options, seed=index % 2)
    expected = [
        adapters.logits(qpeft.load(copy.deepcopy(plain), tmp_path / f"{i}"), ids) for i in range(3)
    ]
    pool = qpeft.AdapterPool(gpt2, tmp_path, capacity=2)
    for index in (0, 1, 2, 1, 0):
        pool.activate(str(index))
        assert torch.equal(adapters.logits(pool.model, ids), expected[index])
        assert not torch.equal(expected[index], adapters.logits(plain, ids))
    pool.activate("__base__")

    assert torch.equal(adapters.logits(pool.model, ids), adapters.logits(plain, ids))

    if mixes:
        mixed = logits_of_rows(pool, pool.place(["2", "0", "__base__"]), ids)
        assert_close(mixed[0], expected[2][0], atol=1e-6, rtol=1e-5)
        assert_close(mixed[1], expected[0][1], atol=1e-6, rtol=1e-5)
    else:  # PEFT does not support mixing them
        with pytest.raises((ValueError, TypeError)):
            logits_of_rows(pool, pool.place(["2", "0", "__base__"]), ids)
        pool.activate("2")
        assert torch.equal(adapters.logits(pool.model, ids), expected[2])
    for module in pool.model.modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            with pytest.raises(ConfigError, match=r"call pool\.model"):
                module(None)


# -- errors


def test_evicted_dora_leaves_nothing_in_the_cache_of_peft(gpt2, ids, adapters, tmp_path):
    plain = copy.deepcopy(gpt2)
    for index in range(2):
        adapter(plain, tmp_path / f"{index}", use_dora=True)
    loaded = (qpeft.load(copy.deepcopy(plain), tmp_path / f"{index}") for index in range(2))
    expected = [adapters.logits(model, ids) for model in loaded]
    pool = qpeft.AdapterPool(gpt2, tmp_path, capacity=1)
    with DoraCaching():
        for index in (0, 1, 0):
            pool.activate(str(index))
            assert torch.equal(adapters.logits(pool.model, ids), expected[index])


def test_unknown_names_raise(pool, users):
    pool.activate("user-1")
    shutil.rmtree(users / "user-1")
    paths = (
        "../users/user-0",
        "user-0/",
        "/etc",
        ".",
        "..",
        ".hidden",
        "a\0b",
        "x" * 300,
        "\ud800",
    )
    for name in ("user-1", "user-17", "", *paths, 3, None):
        for call in (
            lambda name=name: pool.activate(name),
            lambda name=name: pool.place(["__base__", name]),
        ):
            with pytest.raises(ConfigError, match="has no adapter"):
                call()

    with pytest.raises(ConfigError, match="takes a list"):
        pool.place("user-2")


def test_only_adapters_with_the_same_settings_are_served(gpt2, users, ids, adapters):
    adapter(gpt2, users / "wide", r=8)
    adapter(gpt2, users / "more", target_modules=["c_attn", "c_fc"])
    adapter(gpt2, users / "other", kind=qpeft.QuantumPeftConfig, target_modules=["c_attn"])
    adapter(gpt2, users / "dropped", lora_dropout=0.1)  # matters in training alone
    edit_config(shutil.copytree(users / "user-0", users / "mixed"), exclude_modules=["no", 1])
    pool = qpeft.AdapterPool(gpt2, users, capacity=2)
    pool.activate("user-2")
    before = adapters.logits(pool.model, ids)
    differences = {
        "wide": "r=8 instead of 4",
        "more": "target_modules=",
        "other": "peft_type=",
        "mixed": "exclude_modules=",
    }
    for name, difference in differences.items():
        with pytest.raises(CheckpointError, match=difference):
            pool.activate(name)

    assert pool.active == "user-2"
    assert list(pool._held) == ["user-2"]
    assert torch.equal(adapters.logits(pool.model, ids), before)

    pool.activate("dropped")


def test_adapter_saved_without_frames_raises(gpt2, ids, tmp_path):
    for name in "ab":
        options = {"r": 4, "target_modules": ["c_attn"], "frame": "gradient", "frame_rank": 8}
        model = get_peft_model(copy.deepcopy(gpt2), qpeft.QuantumPeftConfig(**LM, **options))
        if name == "a":
            qpeft.fit_frames(model, [{"input_ids": ids, "labels": ids}])
        qpeft.save(model, tmp_path / name)
    pool = qpeft.AdapterPool(copy.deepcopy(gpt2), tmp_path)
    with pytest.raises(ConfigError, match=r"'b' cannot be served.*without the frames"):
        pool.activate("b")


def test_copied_module_that_is_not_finite_is_refused(gpt2, tmp_path):
    model = adapter(gpt2, tmp_path / "a", modules_to_save=["ln_f"])
    model.transformer.ln_f.modules_to_save["default"].bias.data[0] = torch.nan
    model.save_pretrained(tmp_path / "b")
    with pytest.raises(CheckpointError, match=r"'b' cannot be served.*NaN"):
        qpeft.AdapterPool(gpt2, tmp_path).activate("b")


def test_other_kinds_of_adapters_and_empty_folders_raise(gpt2, users, tmp_path):
    host = get_peft_model(copy.deepcopy(gpt2), PrefixTuningConfig(**LM, num_virtual_tokens=4))
    attached = qpeft.attach(host, qpeft.QPAGeneratorConfig(hidden=(3, 2), chunk_size=16))
    qpeft.save(attached, tmp_path / "attached" / "a")
    stock = get_peft_model(copy.deepcopy(gpt2), LoraConfig(**LM, r=2, target_modules=["c_attn"]))
    stock.save_pretrained(tmp_path / "stock" / "a")
    for kind in ("attached", "stock"):
        with pytest.raises(ConfigError, match="QPA, Quantum-PEFT and SoRA"):
            qpeft.AdapterPool(gpt2, tmp_path / kind)
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match="contains no adapter folder"):
            qpeft.AdapterPool(gpt2, folder)
    for capacity in (0, -1, 1.5):
        with pytest.raises(ConfigError, match="capacity"):
            qpeft.AdapterPool(gpt2, users, capacity)

    with pytest.raises(ConfigError, match="has an adapter already"):
        qpeft.AdapterPool(stock, users)


CALLS_OF_PEFT = (
    "set_adapter disable_adapter disable_adapter_layers enable_adapter_layers merge_adapter"
    " add_adapter load_adapter add_weighted_adapter delete_adapter unload merge_and_unload"
    " load_state_dict"
)


@pytest.mark.parametrize("call", CALLS_OF_PEFT.split())
def test_calls_of_peft_that_change_what_is_served_are_refused(pool, world, adapters, call):
    pool.activate("user-1")
    for owner in (pool.model, pool.model.base_model):
        with pytest.raises(ConfigError, match=r"pool\.activate"):
            getattr(owner, call)("slot0")
    assert torch.equal(adapters.logits(pool.model, world[3]), world[2]["user-1"])


def test_pool_is_not_copied(pool):
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(ConfigError, match="make another one"):
            copied(pool)


def test_model_that_is_cast_has_the_adapters_that_are_read_later(pool, world, adapters):
    pool.model.double()
    pool.activate("user-1")
    assert_close(adapters.logits(pool.model, world[3]).float(), world[2]["user-1"])


def with_new_parameter(model):
    name, parameter = next((n, p) for n, p in model.named_parameters() if "slot0" in n)
    set_module_tensor_to_device(model, name, "cpu", torch.zeros_like(parameter))


REPLACED = {
    "assigned": lambda model: model.load_state_dict(model.state_dict(), assign=True),
    "one": with_new_parameter,
    "weight norm": lambda model: weight_norm(
        next(m for n, m in model.named_modules() if n.endswith("lora_A.slot0"))
    ),
}


@pytest.mark.parametrize("how", REPLACED)
def test_model_with_replaced_parameters_is_refused(pool, how):
    """What the pool writes would reach no layer, which would apply the adapter from before."""
    pool.place(["user-0", "user-1"])
    REPLACED[how](pool.model.get_base_model())
    with pytest.raises(ConfigError, match=r"has replaced .*lora_A"):
        pool.place(["user-2", "user-3"])


def test_offloaded_model_has_the_adapters_that_are_read_later(pool, world, adapters):
    cpu_offload(pool.model, torch.device("cpu"))
    for name in ("user-1", "user-2", "user-3"):
        pool.activate(name)
        assert_close(adapters.logits(pool.model, world[3]), world[2][name])


def test_merged_adapter_raises(pool):
    for module in pool._modules:
        module.merge(adapter_names=["slot0"])
    for call in (lambda: pool.activate("user-2"), lambda: pool.place(["user-2"])):
        with pytest.raises(ConfigError, match="merged"):
            call()
    pool.model.unmerge_adapter()
    pool.activate("user-2")


def cut(file, other):
    file.write_bytes(file.read_bytes()[:-9])


def replaced(file, other):
    shutil.copy(other, file.with_name("new"))
    file.with_name("new").replace(file)


@pytest.mark.parametrize(
    "change, message",
    [(cut, r"adapter_model\.safetensors is damaged"), (replaced, "SHA-256 differs")],
)
def test_file_that_changes_between_check_and_reading_is_refused(
    gpt2, users, monkeypatch, change, message
):
    weights = "adapter_model.safetensors"
    pool = qpeft.AdapterPool(gpt2, users, capacity=2)
    check = pool_reader.check_folder

    def check_and_change(folder):
        content = check(folder)
        change(folder / weights, users / "user-2" / weights)  # of the same seed
        return content

    with monkeypatch.context() as patched:
        patched.setattr(pool_reader, "check_folder", check_and_change)
        with pytest.raises(CheckpointError, match=message):
            pool.activate("user-4")
