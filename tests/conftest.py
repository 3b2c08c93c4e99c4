"""Fixtures for every test: one thread, tiny models with random weights, and the shared folder where
it exists.

It imports torch inside fixtures: a process of pytest-xdist that only distributes tests starts faster.
"""

import ast
import gc
import os
import shlex
import signal
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no test asks the hub

import hypothesis
import pytest

hypothesis.settings.register_profile("no clock", deadline=None)
hypothesis.settings.load_profile("no clock")

SHARED = Path(__file__).resolve().parents[2] / "shared"


# what is installed for `--library`, with the packages that these bring
LIBRARY = {
    "accelerate",
    "huggingface_hub",
    "hypothesis",
    "numpy",
    "peft",
    "pytest",
    "qpeft",
    "safetensors",
    "torch",
}
LIBRARY |= {"tokenizers", "transformers", "yaml", *sys.stdlib_module_names}


def pytest_addoption(parser):
    parser.addoption(
        "--library",
        action="store_true",
        help="only tests that need neither the laboratory nor an extra",
    )


def pytest_configure(config):
    """The models and data that are fixtures of all tests, in a process that runs tests."""
    if config.getoption("dist", "no") == "no":
        for name in ("tiny_models", "image_files", "in_process"):
            config.pluginmanager.register(import_module(name), name)


def pytest_ignore_collect(collection_path, config):
    """With `--library`, files that import another package, themselves or by tests/support."""
    is_test = collection_path.suffix == ".py" and config.getoption("--library")
    return True if is_test and not _imports(collection_path) <= LIBRARY else None


@cache
def _imports(path):
    """The packages that a file of the tests imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for name in (name.partition(".")[0] for name in names):
            own = Path(__file__).parent / "support" / f"{name}.py"
            found |= _imports(own) if own.is_file() and own != path else {name}
    return found


def pytest_collection_modifyitems(items):
    """Tests on real models and data are long."""
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker("long")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_interrupts():
    """Also where pytest was started in the background of a shell, which makes its programs ignore
    SIGINT.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def _collections_skip_what_is_imported():
    """Each training run collects garbage, which takes longer than the run in a process with every
    library of the tests: what is alive before a module's tests is no longer looked at.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _card_template_is_compiled_once():
    """PEFT writes a model card with each adapter, and most of its time is spent on the template."""
    import jinja2

    jinja2.Environment.compile = cache(jinja2.Environment.compile)


@pytest.fixture(autouse=True)
def _seeded():
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real models and data; tests that want them skip where the folder is absent."""
    if not SHARED.is_dir():
        pytest.skip("the shared folder with real models and data is not here")
    return SHARED


@pytest.fixture
def gpt2():
    """A random GPT-2 (Conv1D, tied head): width 16, 2 layers, 50 tokens."""
    import tiny_models

    return tiny_models.gpt2()


@pytest.fixture
def llama():
    """A random Llama (Linear, untied head): width 16, 2 layers, 50 tokens."""
    import tiny_models

    return tiny_models.llama()


@pytest.fixture
def ids():
    """Token ids for the tiny models, shape (3, 9)."""
    import torch

    return torch.randint(50, (3, 9))


class Adapters:
    """Short functions that most tests of adapters need."""

    @staticmethod
    def qpa(base, **settings):
        """`base` under QPA with a generator small enough for a tiny model."""
        from peft import get_peft_model

        import qpeft

        small = {
            "hidden": (6, 5),
            "chunk_size": 16,
            "n_layers": 3,
            "target_modules": "all-linear",
            "r": 4,
        }
        return get_peft_model(
            base, qpeft.QPAConfig(**{"task_type": "CAUSAL_LM", **small, **settings})
        )

    @staticmethod
    def train(model, ids, steps=3, lr=5e-3):
        """A few AdamW steps on token ids or a batch; the model in evaluation mode."""
        import torch

        batch = ids if isinstance(ids, dict) else {"input_ids": ids, "labels": ids}
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
        for _ in range(steps):
            optimiser.zero_grad()
            model(**batch).loss.backward()
            optimiser.step()
        return model.eval()

    @staticmethod
    def logits(model, ids):
        import torch

        with torch.no_grad():
            return model(**(ids if isinstance(ids, dict) else {"input_ids": ids})).logits

    @staticmethod
    def gradients(model):
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="session")
def adapters() -> type[Adapters]:
    return Adapters


@pytest.fixture(scope="session")
def qpeft_cli():
    """Call the command line as `qpeft_cli(f"plan --model {folder}")`, a line as of a shell; words
    behind the line are taken as they are. If a `code` is given, the command must exit with it.
    """
    from typer.testing import CliRunner

    from qpeft_lab.cli.app import build

    def call(line, *words, code=None, **options):
        arguments = [*shlex.split(str(line)), *map(str, words)]
        result = CliRunner().invoke(build(), arguments, prog_name="qpeft", **options)
        assert code in (None, result.exit_code), result.output
        return result

    return call
