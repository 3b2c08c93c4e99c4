"""What vLLM loads, by the documented rules; and its resolver: compact adapters by name, exported into a bounded cache.

With vLLM's own checks and classes where it is installed (`make compat`), else with a stub of them.
"""

import asyncio
import json
import os
import shutil
import sys
import types
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from tiny_models import llama, save_base
from variants import move

import qpeft
from qpeft.errors import CheckpointError, ConfigError, InputError
from qpeft_lab import vllm_resolver
from qpeft_lab.stock_servers import RANKS, check_export, refusals
from qpeft_lab.vllm_resolver import ExportCache

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.arange(16).view(2, 8)
LARGE, SPREAD = 10**9, 0.25  # bytes of a cache, and of trained values
needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="`make compat` installs vllm")


def make(base, **changes):
    return get_peft_model(base, qpeft.QuantumPeftConfig(**{"r": 2, "task_type": "CAUSAL_LM", **SETTINGS, **changes}))


SETTINGS = {"target_modules": ["q_proj", "down_proj"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(0)
    return save_base(tmp_path_factory.mktemp("base"), llama(vocab_size=257))


def loaded(base):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype="float32").eval()


@pytest.fixture(scope="module")
def framed(base, tmp_path_factory):
    """Adapters with a shared frame file: some hundred bytes each."""
    folder = tmp_path_factory.mktemp("framed")
    model = make(loaded(base), frame="gradient", frame_rank=4)
    qpeft.fit_frames(model, [{"input_ids": torch.arange(40).view(2, 20)}], save_to=folder / "frames")
    for seed in range(4):
        qpeft.save(move(model, seed, SPREAD), folder / f"user-{seed}")
    return folder


@pytest.fixture
def adapters(framed, tmp_path):
    return shutil.copytree(framed, tmp_path / "adapters")


@pytest.fixture
def cache(adapters, tmp_path):
    return ExportCache(adapters, tmp_path / "cache", LARGE)


def exports(cache):
    return sorted(path.name for path in cache.cache.iterdir() if not path.name.startswith("."))


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_exported_adapter_is_the_compact_one(cache, adapters, base):
    unfinished = cache.cache / ".key.01234567.unfinished"  # of a killed export
    unfinished.mkdir(parents=True)
    path = cache.find("user-1", str(base))
    assert not unfinished.exists()
    assert path.parent == cache.cache
    served = logits(PeftModel.from_pretrained(loaded(base), path))
    assert torch.equal(served, logits(qpeft.load(loaded(base), adapters / "user-1")))
    assert not torch.equal(served, logits(loaded(base)))
    assert json.loads((path / "adapter_config.json").read_text())["r"] == 2
    before = path.stat().st_mtime_ns
    (path / "adapter_model.safetensors").chmod(0o400)
    assert cache.find("user-1", str(base)) == path  # not written again
    assert path.stat().st_mtime_ns > before  # used last


@pytest.fixture
def vllm(monkeypatch):
    """The resolvers that are registered with vLLM, by their names."""
    if find_spec("vllm") is None:
        resolvers = {}
        registry = types.SimpleNamespace(register_resolver=resolvers.__setitem__, resolvers=resolvers)
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


@pytest.fixture
def resolve(vllm, adapters, base, tmp_path, monkeypatch):
    monkeypatch.setenv("QPEFT_ADAPTERS", str(adapters))
    monkeypatch.setenv("QPEFT_CACHE", str(tmp_path / "cache"))
    vllm_resolver.register()
    return lambda name: asyncio.run(vllm["qpeft"].resolve_lora(str(base), name))


def test_request_of_vllm_is_answered_with_a_path(resolve, tmp_path):
    found = resolve("user-0")
    assert (found.lora_name, found.lora_int_id > 0) == ("user-0", True)
    assert found.lora_path == str(next(tmp_path.glob("cache/[!.]*")))
    assert resolve("user-0").lora_path == found.lora_path
    for unknown in ("nobody", "", "../adapters/user-0", ".", "frames.safetensors"):
        assert resolve(unknown) is None


@needs_vllm
def test_vllm_reads_the_exported_adapter(cache, base, monkeypatch):
    """On the CPU, as a worker of vLLM does before it moves the adapter to the GPU."""
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    monkeypatch.setattr("vllm.lora.lora_model.PIN_MEMORY", False, raising=False)  # which needs a driver
    path = cache.find("user-1", str(base))
    helper = PEFTHelper.from_local_dir(str(path), None)
    targets = set(SETTINGS["target_modules"])
    found = LoRAModel.from_local_checkpoint(str(path), targets, helper, device="cpu", dtype=torch.float32)
    modules = PeftModel.from_pretrained(loaded(base), path).named_modules()
    layers = {name: m for name, m in modules if hasattr(m, "lora_A")}
    assert len(found.loras) == len(layers) == 4
    for name, layer in layers.items():
        lora = found.loras[name.removeprefix("base_model.model.")]
        torch.testing.assert_close(lora.lora_b @ lora.lora_a * lora.scaling, layer.get_delta_weight("default"))


def test_nothing_is_registered_without_adapters(vllm, monkeypatch, tmp_path):
    monkeypatch.delenv("QPEFT_ADAPTERS", raising=False)
    vllm_resolver.register()
    assert not vllm
    for name, value in (("QPEFT_ADAPTERS", tmp_path / "missing"), ("QPEFT_CACHE_BYTES", "10 GB")):
        monkeypatch.setenv("QPEFT_ADAPTERS", str(tmp_path))
        monkeypatch.setenv(name, str(value))
        with pytest.raises(ConfigError, match=name):
            vllm_resolver.register()


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
)
def test_damaged_adapter_is_refused_and_others_are_served(resolve, adapters, tmp_path, damage, monkeypatch):
    monkeypatch.setattr("qpeft.core.frame_file._KNOWN", {})
    damage(adapters / "user-2")
    with pytest.raises(CheckpointError) as refused:
        resolve("user-2")
    assert "user-2" in str(refused.value)
    assert str(adapters) not in str(refused.value)
    if (adapters / "frames.safetensors").exists():
        assert resolve("user-1") is not None
    assert not list((tmp_path / "cache").glob(".*.unfinished"))


def test_adapter_of_another_base_is_refused(cache, adapters, base, tmp_path):
    torch.manual_seed(1)
    save_base(tmp_path / "other", llama(vocab_size=257))
    qpeft.save(move(make(loaded(base)), spread=SPREAD), adapters / "plain")
    for name in ("user-0", "plain"):  # with frames and without
        with pytest.raises(CheckpointError):
            cache.find(name, str(tmp_path / "other"))
    assert exports(cache) == []
    of_base = ExportCache(adapters, cache.cache, LARGE, base=str(base))  # such as a quantized copy is served
    assert of_base.find("plain", str(tmp_path / "other")) is not None


def test_what_vllm_cannot_load_is_refused_with_the_reason(cache, adapters, base):
    qpeft.save(move(make(loaded(base), modules_to_save=["norm"]), spread=SPREAD), adapters / "norms")
    with pytest.raises(ConfigError, match="norm"):
        cache.find("norms", str(base))
    config = qpeft.QAAConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    qpeft.save(get_peft_model(loaded(base), config), adapters / "qaa")
    with pytest.raises(InputError):
        cache.find("qaa", str(base))


def test_replaced_adapter_gets_a_new_folder(cache, adapters, base):
    before = cache.find("user-0", str(base))
    kept = (before / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(adapters / "user-0")
    shutil.copytree(adapters / "user-1", adapters / "user-0")
    after = cache.find("user-0", str(base))
    assert after != before
    assert (before / "adapter_model.safetensors").read_bytes() == kept  # a server may read it again
    assert after == cache.find("user-1", str(base))


def test_adapter_that_is_replaced_while_it_is_read_is_not_served(cache, adapters, base, monkeypatch):
    export = qpeft.export

    def replacing(*arguments):
        export(*arguments)
        shutil.copytree(adapters / "user-1", adapters / "user-0", dirs_exist_ok=True)

    with monkeypatch.context() as patched:
        patched.setattr(qpeft, "export", replacing)
        with pytest.raises(CheckpointError, match="replaced"):
            cache.find("user-0", str(base))
    assert exports(cache) == []
    assert cache.find("user-0", str(base)) == cache.find("user-1", str(base))


def size(path):
    return sum(file.stat().st_size for file in path.iterdir())


def test_cache_is_bounded_and_keeps_what_a_running_server_was_given(cache, adapters, base):
    ended = ExportCache(adapters, cache.cache, LARGE)
    first, second = (ended.find(f"user-{i}", str(base)) for i in range(2))
    bounded = ExportCache(adapters, cache.cache, int(2.5 * size(first)))
    with pytest.raises(ConfigError, match="QPEFT_CACHE_BYTES"):
        bounded.find("user-2", str(base))
    assert bounded.find("user-0", str(base)) == first  # used after the second
    os.close(ended._given)  # as at the end of its process
    third = bounded.find("user-2", str(base))
    assert exports(cache) == sorted([first.name, third.name])
    assert not second.exists()
    with pytest.raises(ConfigError, match="restart the server"):
        bounded.find("user-3", str(base))
    assert first.exists()


def test_adapters_that_are_asked_for_at_once_are_exported_once(cache, adapters, base):
    for number in range(4, 1000):
        shutil.copytree(adapters / f"user-{number % 4}", adapters / f"user-{number}")
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda number: cache.find(f"user-{number}", str(base)), range(1000)))
    assert [path == paths[number % 4] for number, path in enumerate(paths)] == [True] * 1000
    assert len(exports(cache)) == 4  # equal adapters share one
    assert all(size(adapters / f"user-{number}") < 2000 for number in range(1000))


# what vLLM loads

TARGETS = ["q_proj", "up_proj"]
YES = "yes, if vLLM supports LoRA for the architecture"
# settings -> whether vLLM loads it, and a part of the answer: docs/small_adapters.md has the sources
LORA = {
    "plain": ({}, True, YES),
    "rank 16": ({"r": 16}, True, YES),
    "rank 20": ({"r": 20}, True, "--max-lora-rank 32"),
    "rank 513": ({"r": 513}, False, "513"),
    "rsLoRA": ({"use_rslora": True}, True, YES),
    "trained norm": ({"modules_to_save": ["norm"]}, False, "norm"),
    "DoRA": ({"use_dora": True}, False, "DoRA"),
    "bias": ({"bias": "lora_only"}, False, "biases"),
    "PiSSA": ({"init_lora_weights": "pissa"}, False, "pissa"),
    "output head": ({"target_modules": ["q_proj", "lm_head"]}, True, "for some models"),
    "embedding": ({"target_modules": ["q_proj", "embed_tokens"]}, True, "for some models"),
    "one rank": ({"rank_pattern": {"up_proj": 20}}, True, "--max-lora-rank 32"),
    "a trained token": ({"trainable_token_indices": [3]}, False, "trained tokens"),
}


@pytest.fixture(params=LORA)
def lora(request, llama, tmp_path):
    settings, *expected = LORA[request.param]
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **settings}, task_type="CAUSAL_LM")
    get_peft_model(llama, config).save_pretrained(tmp_path, save_embedding_layers=False)
    return config, tmp_path, *expected


def test_lora_against_the_documented_rules(lora):
    config, folder, loads, part = lora
    answer = check_export(folder)
    assert part in answer
    assert answer.startswith("no") == (not loads)
    before_training = refusals(config, certain=True)
    assert bool(before_training) == (not loads)
    assert bool(refusals(config)) == (bool(before_training) or part.startswith("for some"))


@needs_vllm
def test_vllm_agrees(lora):
    """As far as it looks before it reads the tensors."""
    from vllm.lora.peft_helper import PEFTHelper

    _, folder, loads, part = lora
    helper = PEFTHelper.from_local_dir(str(folder), None)
    theirs = not helper._validate_features() and helper.bias == "none" and helper.r <= RANKS[-1]
    assert theirs == (loads or part == "trained tokens")


def test_generated_adapters_are_checked_as_their_exports():
    common = {"r": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
    assert refusals(qpeft.QPAConfig(**common)) == refusals(qpeft.SoRAConfig(**common)) == []
    assert "norm" in refusals(qpeft.QuantumPeftConfig(**common, modules_to_save=["norm"]))[0]
    assert "QPEFT_QAA" in refusals(qpeft.QAAConfig(target_modules=TARGETS))[0]
    assert "IA3" in refusals(IA3Config(target_modules=TARGETS))[0]
    assert "PREFIX_TUNING" in refusals(PrefixTuningConfig(num_virtual_tokens=2))[0]
    head = LoraConfig(r=4, target_modules=TARGETS, modules_to_save=["score"], task_type="SEQ_CLS")
    assert refusals(head, certain=True) == []  # depends on the model
    assert "classification" in refusals(head)[0]


def test_architecture_without_lora_in_vllm_is_refused(gpt2, tmp_path):
    model = get_peft_model(gpt2, qpeft.QuantumPeftConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM"))
    qpeft.export(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 2
    assert check_export(tmp_path, "gpt2").startswith("no")
    assert check_export(tmp_path, "llama") == YES
    assert refusals(model.peft_config["default"], "gpt2")
