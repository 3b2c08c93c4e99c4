"""Compact adapters served by name, exported into a bounded cache, and their revisions.

With a stub of vLLM's classes where vLLM is not installed; `nox -s vllm` has the real ones.
"""

import asyncio
import os
import shutil
import sys
import types
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny_models import llama, save_base
from transformers import AutoModelForCausalLM
from variants import move

import qpeft
from qpeft.errors import CheckpointError, ConfigError
from qpeft_lab import revisions, vllm_resolver
from qpeft_lab.vllm_resolver import ExportCache, default_cache

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.arange(16).view(2, 8)
# bytes of a cache, and of trained values
LARGE = 10**9
SPREAD = 0.25
FILES = ("adapter_config.json", "adapter_model.safetensors")


def loaded(base):
    return AutoModelForCausalLM.from_pretrained(base, dtype="float32").eval()


def make(base, **changes):
    settings = {"r": 2, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "down_proj"]}
    return get_peft_model(loaded(base), qpeft.QuantumPeftConfig(**{**settings, **changes}))


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(0)
    return save_base(tmp_path_factory.mktemp("base"), llama(vocab_size=257))


@pytest.fixture(scope="module")
def framed(base, tmp_path_factory):
    """Adapters with a shared frame file: some hundred bytes each."""
    folder = tmp_path_factory.mktemp("framed")
    model = make(base, frame="gradient", frame_rank=4)
    batches = [{"input_ids": torch.arange(40).view(2, 20)}]
    qpeft.fit_frames(model, batches, save_to=folder / "frames")
    for seed in range(4):
        qpeft.save(move(model, seed, SPREAD), folder / f"user-{seed}")
    return folder


@pytest.fixture
def adapters(framed, tmp_path):
    return shutil.copytree(framed, tmp_path / "adapters")


@pytest.fixture
def cache(adapters, tmp_path):
    made = ExportCache(adapters, tmp_path / "cache", LARGE)
    yield made
    end(made)


def end(cache):
    """As the end of its process."""
    if cache._given is not None:
        os.close(cache._given)
        cache._given = None


def exports(cache):
    return sorted(path.name for path in cache.cache.iterdir() if not path.name.startswith("."))


def test_chat_template_of_an_adapter_which_the_server_does_not_use_is_logged(
    cache, adapters, base, caplog
):
    (adapters / "user-1" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    for name in ("user-0", "user-1", "user-1"):
        cache.find(name, str(base))
    told = [record.getMessage() for record in caplog.records if "chat template" in record.msg]
    assert len(told) == 1
    assert "user-1" in told[0]

    ExportCache(adapters, cache.cache, LARGE).find("user-1", str(base))  # after a restart
    assert len([record for record in caplog.records if "chat template" in record.msg]) == 2


def replace(adapters, name, by):
    for file in FILES:
        shutil.copy(adapters / by / file, adapters / name / file)


def test_exported_adapter_is_the_compact_one(cache, adapters, base):
    unfinished = cache.cache / ".key.01234567.unfinished"  # of a killed export
    unfinished.mkdir(parents=True)
    path = cache.find("user-1", str(base))

    assert not unfinished.exists()

    served = logits(PeftModel.from_pretrained(loaded(base), path))
    assert torch.equal(served, logits(qpeft.load(loaded(base), adapters / "user-1")))
    assert not torch.equal(served, logits(loaded(base)))

    before = path.stat().st_mtime_ns
    assert cache.find("user-1", str(base)) == path
    assert exports(cache) == [path.name]  # not written again
    assert path.stat().st_mtime_ns > before  # used last

    change_value(path)  # by somebody else: it is exported again
    assert cache.find("user-1", str(base)) == path
    assert torch.equal(served, logits(PeftModel.from_pretrained(loaded(base), path)))


def swap(first, second):
    first.rename(first.with_name("kept"))
    second.rename(first)
    first.with_name("kept").rename(second)


def link(first, second):
    shutil.rmtree(first)
    first.symlink_to(second)


def without_record(first, second):
    for file in FILES:
        shutil.copy(second / file, first)
    (first / "qpeft.json").unlink()


@pytest.mark.parametrize("exchange", [swap, link, without_record])
def test_exchanged_exports_are_exported_again(cache, base, exchange):
    paths = [cache.find(f"user-{i}", str(base)) for i in (1, 2)]
    served = [logits(PeftModel.from_pretrained(loaded(base), path)) for path in paths]
    assert not torch.equal(*served)

    exchange(*paths)
    assert [cache.find(f"user-{i}", str(base)) for i in (1, 2)] == paths

    for path, expected in zip(paths, served, strict=True):
        assert not path.is_symlink()
        assert torch.equal(logits(PeftModel.from_pretrained(loaded(base), path)), expected)


def test_replaced_adapter_is_a_new_revision_and_the_old_one_stays(cache, adapters, base, qpeft_cli):
    folder = adapters / "user-0"
    (folder / "chat_template.jinja").write_text("old")
    first = cache.find("user-0", str(base))
    old = revisions.revision(folder)
    (folder / "chat_template.jinja").write_text("new")
    replace(adapters, "user-0", "user-1")
    second = cache.find("user-0", str(base))
    new = revisions.revision(folder)

    assert old != new
    assert first != second
    assert second == cache.find("user-1", str(base)) == cache.find(f"user-0@{new}", str(base))
    assert cache.find(f"user-0@{old}", str(base)) == first

    end(cache)  # a restart of the server, on an empty cache
    shutil.rmtree(cache.cache)
    again = ExportCache(adapters, cache.cache, LARGE)

    assert again.find(f"user-0@{old}", str(base)) == first  # exported again

    number = again.number(first)
    shutil.rmtree(cache.cache)  # as some systems do with memory files when a user logs out
    assert again.number(again.find("user-0", str(base))) != number == again.number(first)

    end(again)
    assert old in " ".join(qpeft_cli("rollback", folder, code=0).stdout.split())

    (revisions.keep(folder, new) / "adapter_config.json").write_text("{")  # damaged
    other = folder / "checkpoint-5" / "adapter_model.safetensors"
    other.parent.mkdir()
    other.write_text("kept")
    qpeft_cli("rollback", folder, "--to", old, code=0)
    assert other.read_text() == "kept"
    assert (folder / "chat_template.jinja").read_text() == "old"
    (folder / "chat_template.jinja").unlink()  # of a revision without one
    revisions.keep(folder, old)
    qpeft_cli("rollback", folder, "--to", new, code=0)
    assert (folder / "chat_template.jinja").read_text() == "new"
    qpeft_cli("rollback", folder, "--to", old, code=0)
    assert not (folder / "chat_template.jinja").exists()
    assert revisions.revision(folder) == old
    assert {*revisions.kept(folder)} == {old, new}

    replace(adapters, f".user-0@{new}", "user-2")  # which has another digest
    for unknown in (new, "0" * 12, "../user-1", ""):
        assert unknown == "" or cache.find(f"user-0@{unknown}", str(base)) is None
        qpeft_cli("rollback", folder, "--to", unknown, code=2)
    assert {path.name for path in adapters.iterdir() if path.name[0] != "."} == {
        "frames.safetensors",
        *(f"user-{i}" for i in range(4)),
    }


NO_NAMES = ["nobody", "", "../adapters/user-0", ".", "..", "frames.safetensors", "n" * 10_000]
NO_NAMES += ["user-0/", "user-0\x00", "user-0@../x", "\udc80", "\ud800", ".user-0@0123456789ab"]


@pytest.mark.parametrize("name", NO_NAMES, ids=lambda name: ascii(name)[:24])
def test_names_that_are_none_have_no_adapter(cache, base, name):
    assert cache.find(name, str(base)) is None
    assert not cache.cache.exists()


def change_value(folder):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x77")


@pytest.mark.parametrize(
    "damage",
    [
        change_value,
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        lambda folder: (folder.parent / "frames.safetensors").unlink(),
    ],
    ids=["changed", "no weights", "no frames"],
)
def test_damaged_adapter_is_refused_and_others_are_served(cache, adapters, base, damage):
    damage(adapters / "user-2")
    with pytest.raises(CheckpointError) as refused:
        cache.find("user-2", str(base))
    assert "'user-2' cannot be served" in str(refused.value)
    assert str(adapters) not in str(refused.value)
    assert revisions.kept(adapters / "user-2") == []

    if (adapters / "frames.safetensors").exists():
        assert cache.find("user-1", str(base)) is not None
    assert not list(cache.cache.glob(".*.unfinished"))


def test_adapter_of_another_base_is_refused(cache, adapters, base, tmp_path):
    torch.manual_seed(1)
    save_base(tmp_path / "other", llama(vocab_size=257))
    qpeft.save(move(make(base), spread=SPREAD), adapters / "plain")
    qpeft.save(move(make(base, modules_to_save=["norm"]), spread=SPREAD), adapters / "norms")
    for name in ("user-0", "plain"):  # with frames and without
        with pytest.raises(CheckpointError):
            cache.find(name, str(tmp_path / "other"))

    with pytest.raises(ConfigError, match="norm"):  # which vLLM does not load
        cache.find("norms", str(base))
    assert exports(cache) == []

    # nor if its folder is that of the base whose exports are in the cache
    served = shutil.copytree(base, tmp_path / "served")
    assert cache.find("plain", str(served)) is not None

    shutil.copytree(tmp_path / "other", served, dirs_exist_ok=True)
    with pytest.raises(CheckpointError):
        ExportCache(adapters, cache.cache, LARGE).find("plain", str(served))

    # such as a quantized copy is served
    of_base = ExportCache(adapters, cache.cache, LARGE, base=str(base))
    assert of_base.find("plain", str(tmp_path / "other")) is not None

    end(of_base)


def test_adapter_that_is_replaced_while_it_is_read_is_not_served(
    cache, adapters, base, monkeypatch
):
    export = qpeft.export

    def replacing(*arguments):
        export(*arguments)
        replace(adapters, "user-0", "user-1")

    with monkeypatch.context() as patched:
        patched.setattr(qpeft, "export", replacing)
        with pytest.raises(CheckpointError, match="replaced"):
            cache.find("user-0", str(base))

    assert exports(cache) == revisions.kept(adapters / "user-0") == []
    assert cache.find("user-0", str(base)) == cache.find("user-1", str(base))


def test_cache_is_bounded_and_keeps_what_a_running_server_was_given(cache, adapters, base):
    ended = ExportCache(adapters, cache.cache, LARGE)
    first, second = (ended.find(f"user-{i}", str(base)) for i in range(2))
    n_bytes = sum(file.stat().st_size for file in first.iterdir())
    bounded = ExportCache(adapters, cache.cache, int(2.5 * n_bytes))

    with pytest.raises(ConfigError, match="QPEFT_CACHE_BYTES"):
        bounded.find("user-2", str(base))
    assert bounded.find("user-0", str(base)) == first  # used after the second

    end(ended)
    third = bounded.find("user-2", str(base))
    assert exports(cache) == sorted([first.name, third.name])
    assert not second.exists()
    with pytest.raises(ConfigError, match="restart the server"):
        bounded.find("user-3", str(base))

    end(bounded)


def test_full_and_read_only_folders_are_explained_and_need_no_revisions(
    cache, adapters, base, monkeypatch
):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(qpeft, "export", full)
        with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\)"):
            cache.find("user-0", str(base))
    monkeypatch.setattr(revisions, "keep", full)  # of a read-only folder of adapters

    assert cache.find("user-0", str(base)) is not None


def test_versions_share_a_cache_and_not_their_exports(cache, base, monkeypatch):
    first = cache.find("user-0", str(base))
    monkeypatch.setattr(vllm_resolver, "version", lambda _: "9.9")
    assert cache.find("user-0", str(base)) != first
    assert first.exists()


def test_adapters_that_are_asked_for_at_once_are_exported_once(cache, adapters, base):
    for number in range(4, 60):
        shutil.copytree(adapters / f"user-{number % 4}", adapters / f"user-{number}")
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda number: cache.find(f"user-{number}", str(base)), range(60))
    paths = list(found)

    assert all(path == paths[number % 4] for number, path in enumerate(paths))
    assert len(exports(cache)) == 4  # equal adapters share one


def test_default_cache_is_a_folder_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_resolver, "_SHARED_MEMORY", tmp_path)
    home = Path("~/.cache/qpeft/vllm").expanduser()
    own = default_cache()

    assert own.parent == tmp_path
    assert own.stat().st_mode & 0o777 == 0o700

    own.chmod(0o777)
    assert default_cache() == home  # others can write there

    own.rmdir()
    own.symlink_to(tmp_path)
    assert default_cache() == home

    monkeypatch.setattr(vllm_resolver, "_SHARED_MEMORY", tmp_path / "missing")
    assert default_cache() == home


@pytest.fixture
def vllm(monkeypatch):
    """The resolvers that are registered with vLLM, by their names."""
    if find_spec("vllm") is None:
        resolvers = {}
        registry = types.SimpleNamespace(
            register_resolver=resolvers.__setitem__, resolvers=resolvers
        )
        request = namedtuple("LoRARequest", "lora_name lora_int_id lora_path")
        parts = {
            "vllm": {},
            "vllm.lora": {},
            "vllm.lora.request": {"LoRARequest": request},
            "vllm.lora.resolver": {"LoRAResolver": object, "LoRAResolverRegistry": registry},
        }
        for name, content in parts.items():
            module = types.ModuleType(name)
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, name, module)
    from vllm.lora.resolver import LoRAResolverRegistry

    monkeypatch.setattr(LoRAResolverRegistry, "resolvers", LoRAResolverRegistry.resolvers)
    LoRAResolverRegistry.resolvers.clear()
    return LoRAResolverRegistry.resolvers


def test_request_of_vllm_is_answered_with_a_path(vllm, adapters, base, tmp_path, monkeypatch):
    monkeypatch.setenv("QPEFT_ADAPTERS", str(adapters))
    monkeypatch.setenv("QPEFT_CACHE", str(tmp_path / "cache"))
    vllm_resolver.register()

    def resolve(name):
        return asyncio.run(vllm["qpeft"].resolve_lora(str(base), name))

    found = resolve("user-0")

    assert found.lora_name == "user-0"
    assert found.lora_path == str(next(tmp_path.glob("cache/[!.]*")))
    assert [resolve(f"user-{n}").lora_int_id for n in (0, 1, 0)] == [1, 2, 1]  # vLLM has 32 bits

    vllm_resolver.register()  # another server of this cache
    assert [resolve(f"user-{n}").lora_int_id for n in (1, 0)] == [2, 1]
    assert resolve("nobody") is None


def test_nothing_is_registered_without_adapters(vllm, monkeypatch, tmp_path):
    monkeypatch.delenv("QPEFT_ADAPTERS", raising=False)
    vllm_resolver.register()
    assert not vllm

    for name, value in (("QPEFT_ADAPTERS", tmp_path / "missing"), ("QPEFT_CACHE_BYTES", "10 GB")):
        monkeypatch.setenv("QPEFT_ADAPTERS", str(tmp_path))
        monkeypatch.setenv(name, str(value))
        with pytest.raises(ConfigError, match=name):
            vllm_resolver.register()
