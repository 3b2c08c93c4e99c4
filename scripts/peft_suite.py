"""Run tests of PEFT's own suite with the methods of qpeft in the place of PEFT's: `nox --session
peft_suite`, or, in an environment with qpeft, pytest and pip,

    python scripts/peft_suite.py [--methods qpa,sora] [custom decoder ...] [-k EXPRESSION]

It downloads the source distribution of the installed PEFT, which the wheel's tests are not in. Lists of
PEFT's tests are replaced when pytest has imported them; nothing of PEFT's code is copied or changed on
the disk. Models come from no hub: of each architecture a random one is made under the name that the
tests look for. The method `lora` is stock LoRA, for reference.

Printed are the numbers of each file, and the failures in groups: test, exception, message without
numbers and names, and the methods that it concerns.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import types
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import pytest
import torch
import transformers
from peft import LoraConfig

import qpeft

FILES = {
    "encoder-decoder": "test_encoder_decoder_models.py",
    "feature-extraction": "test_feature_extraction_models.py",
    "decoder": "test_decoder_models.py",
    "custom": "test_custom_models.py",
    "compile": "test_torch_compile.py",
}


class AttachedConfig(LoraConfig):
    """A LoRA that `get_peft_model` attaches QPA to."""


METHODS: dict[str, tuple[type, dict[str, Any]]] = {
    "qpa": (qpeft.QPAConfig, {"r": 2, "n_layers": 3}),
    "quantum-peft": (qpeft.QuantumPeftConfig, {"r": 2, "n_layers": 1}),
    "quantum-peft-lie": (qpeft.QuantumPeftConfig, {"r": 2, "family": "lie"}),
    "qaa": (qpeft.QAAConfig, {}),
    "cua": (qpeft.CUAConfig, {}),
    "quic": (qpeft.QuICConfig, {"n_blocks": 1}),
    "quanta": (qpeft.QuanTAConfig, {"form": "mpo"}),
    "sora": (qpeft.SoRAConfig, {"r": 4}),
    "bottleneck": (qpeft.BottleneckConfig, {"bottleneck_size": 4}),
    "attached": (AttachedConfig, {"r": 2}),
    "lora": (LoraConfig, {"r": 4}),
}
LINEAR_ONLY = ("qaa", "cua", "quic", "quanta", "bottleneck")
# modules of test_custom_models: name of the case, model, and what is adapted
CUSTOM = {
    "MLP": ("MLP", {"target_modules": ["lin0"]}),
    "MLP with a head": ("MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    "Conv1D": ("EmbConv1D", {"target_modules": ["conv1d"]}),
    "Conv2d": ("Conv2d", {"target_modules": ["conv2d"]}),
    "embedding": ("EmbConv1D", {"target_modules": ["emb"]}),
}

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "vocab_size": 1024,
}
MODELS: dict[str, dict[str, Any]] = {  # class, and its settings
    "T5ForConditionalGeneration": {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 37,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": 1024,
        "decoder_start_token_id": 0,
    },
    "BartForConditionalGeneration": {
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "vocab_size": 1024,
        "max_position_embeddings": 100,
    },
    "BertModel": SHAPE,
    "RobertaModel": SHAPE,
    "DebertaModel": SHAPE,
    "DebertaV2Model": SHAPE,
    "GPT2LMHeadModel": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 1024},
    "LlamaForCausalLM": {**SHAPE, "num_key_value_heads": 2},
}
FOLDERS = ("peft-internal-testing", "hf-internal-testing", "trl-internal-testing")


def download(folder: Path) -> Path:
    """The folder with the tests of the installed PEFT."""
    version = importlib.metadata.version("peft")
    wanted = [f"peft=={version}", "--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "download", *wanted], check=True)
    with tarfile.open(folder / f"peft-{version}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / f"peft-{version}" / "tests"


def make_models(folder: Path) -> None:
    """A random model of each architecture, under the names that the tests look for."""
    for name, settings in MODELS.items():
        made: Any = getattr(transformers, name)
        torch.manual_seed(0)
        model = made(made.config_class(**settings))
        suffix = "-calibrated" if name.startswith("T5") else ""
        for owner in FOLDERS:
            model.save_pretrained(folder / owner / f"tiny-random-{name}{suffix}")


class Suite:
    """A plugin of pytest: replaces lists of configs, moves adapters, and collects the outcomes."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.moves = False  # whether the test wants adapters that are not at their initial values
        self.replaced: set[str] = set()
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.groups: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
        self._get_peft_model = peft.get_peft_model
        peft.get_peft_model = self.get_peft_model

    def get_peft_model(self, model: Any, config: Any, *args: Any, **options: Any) -> Any:
        """PEFT's, with what `qpeft.attach` and a moved adapter need."""
        adapted: Any = self._get_peft_model(model, config, *args, **options)
        if isinstance(config, AttachedConfig):
            adapted = qpeft.attach(adapted, qpeft.QPAGeneratorConfig(n_layers=3))
        if self.moves:
            draw = torch.Generator().manual_seed(1)
            for name, parameter in adapted.named_parameters():
                if parameter.requires_grad and "modules_to_save" not in name:
                    noise = torch.randn(parameter.shape, generator=draw)
                    parameter.data += 0.3 * noise.to(parameter)
        return adapted

    def set_init_weights_false(self, config_class: Any, settings: Any) -> Any:
        """For PEFT's function of this name: others than LoRA are moved after they are built."""
        if config_class is LoraConfig:
            return {**settings, "init_lora_weights": False}
        self.moves = True
        return dict(settings)

    def cases(self, module: str) -> Any:
        """What replaces the list of PEFT in a module of its tests."""
        pairs = {name: METHODS[name] for name in self.names}
        if module == "test_custom_models":
            return [
                (f"{name} {case}", model, config_class, {**settings, **more})
                for name, (config_class, settings) in pairs.items()
                for case, (model, more) in CUSTOM.items()
                if name not in LINEAR_ONLY or case not in ("Conv2d", "embedding")
            ]
        task = {
            "test_encoder_decoder_models": "SEQ_2_SEQ_LM",
            "test_feature_extraction_models": "FEATURE_EXTRACTION",
        }.get(module, "CAUSAL_LM")
        configs = {
            name: (made, {**more, "task_type": task}) for name, (made, more) in pairs.items()
        }
        if module == "test_torch_compile":
            return {name: (made(**more), {}) for name, (made, more) in configs.items()}
        return [pytest.param(*pair, id=name) for name, pair in configs.items()]

    @pytest.hookimpl(tryfirst=True)
    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Replace the content of the lists, which the decorators have as well."""
        module = metafunc.module
        if module.__name__ in self.replaced:
            return
        self.replaced.add(module.__name__)
        cases = self.cases(module.__name__.rpartition(".")[2])
        if isinstance(cases, dict):
            module.SETTINGS.clear()
            module.SETTINGS.update(cases)
        else:
            getattr(module, "TEST_CASES" if hasattr(module, "TEST_CASES") else "ALL_CONFIGS")[:] = (
                cases
            )

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Leave out tests without a method of ours, and models that were not made."""
        made = {f"{owner}/tiny-random-{name}" for owner in FOLDERS for name in MODELS}
        kept = []
        for item in items:
            given = getattr(item, "callspec", None)
            values = given.params if given else {}
            model = str(values.get("model_id", ""))
            has_model = "/" not in model or model.removesuffix("-calibrated") in made
            if has_model and {"config_cls", "settings"} & values.keys():
                kept.append(item)
        items[:] = kept

    def pytest_runtest_setup(self) -> None:
        self.moves = False

    def pytest_exception_interact(self, node: Any, call: Any, report: Any) -> None:
        message = str(call.excinfo.value).strip().partition("\n")[0]
        message = re.sub(r"'[^']*'|[\d.]+(e-?\d+)?|0x\w+", "#", message)[:100]
        test, _, case = node.name.partition("[")
        self.groups[test, call.excinfo.typename, message].append(case.rstrip("]"))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[Path(report.fspath).name][report.outcome] += 1

    def print(self) -> None:
        """The numbers of each file, and the groups of failures, the largest first."""
        for (test, exception, message), cases in sorted(
            self.groups.items(), key=lambda group: -len(group[1])
        ):
            ordered = sorted(self.names, key=len, reverse=True)
            concerned = Counter(next((n for n in ordered if n in c), c) for c in cases)
            print(f"{len(cases):4} {test}: {exception}: {message}\n     {dict(concerned)}")
        for file, counts in self.counts.items():
            print(file, dict(counts))


def stub(name: str, *attributes: str) -> None:
    """An empty class for each name that the tests import from a package that is not installed."""
    if importlib.util.find_spec(name) is None:
        module: Any = types.ModuleType(name)
        for attribute in attributes:
            setattr(module, attribute, type(attribute, (), {}))
        sys.modules[name] = module


def main() -> int:
    parser = argparse.ArgumentParser(description="Run tests of PEFT's suite on qpeft.")
    parser.add_argument("files", nargs="*", default=["custom"], help=", ".join(FILES))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("-k", default="", help="as of pytest")
    given = parser.parse_args()
    suite = Suite(given.methods.split(","))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tests = download(folder)
        make_models(tests.parent)
        (tests / "__init__.py").touch()  # its modules import each other relatively
        os.chdir(tests.parent)
        sys.path.insert(0, str(tests.parent))
        stub("diffusers", "StableDiffusionPipeline")
        utils = importlib.import_module("tests.testing_utils")
        vars(utils)["set_init_weights_false"] = suite.set_init_weights_false
        paths = [str(tests / FILES[file]) for file in given.files]
        options = ["-q", "--tb=no", "-W", "ignore", "-p", "no:cacheprovider", "-k", given.k]
        options += ["-c", os.devnull]  # PEFT's own options ask for a measurement of coverage
        code = pytest.main([*paths, *options], plugins=[suite])
        suite.print()
    return int(code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED))


if __name__ == "__main__":
    raise SystemExit(main())
