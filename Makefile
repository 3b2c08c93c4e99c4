# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BENCH := .venv-bench
BIN := $(VENV)/bin
INSTALL := pip install --quiet --disable-pip-version-check --constraint constraints.txt
PIP := $(BIN)/$(INSTALL)

.PHONY: demo test test-all coverage check docs bench compat release format clean

demo: $(VENV)/.installed
	$(BIN)/qpeft demo

PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup

# for every change; the tests marked `long` are left out
test: check docs
	$(PYTEST) -m "not long"

# before a release
test-all: check docs
	$(PYTEST)

# which lines of src the tests of `make test` run
coverage: $(VENV)/.installed-dev
	$(PYTEST) -m "not long" --cov qpeft --cov-report term-missing:skip-covered

check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(VENV)/.installed-dev
	$(BIN)/sphinx-build --quiet --fail-on-warning --builder html docs docs/_build/html
	$(BIN)/sphinx-build --quiet --fail-on-warning --builder doctest docs docs/_build/doctest

bench: $(BENCH)/.installed
	$(BENCH)/bin/python benchmarks/bench.py

# on the oldest and the newest of what qpeft supports; environments in .nox
compat: $(VENV)/.installed-dev
	$(BIN)/nox

# wheel and sdist, and the demo from the wheel in an environment that has nothing else
release: $(VENV)/.installed-dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv dist/venv
	dist/venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
	cd dist && venv/bin/qpeft demo --out demo-run

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) .nox dist docs/_build demo-run

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "qpeft needs Python 3.11 or newer; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[pennylane,qiskit,ray,tensorboard]' --group dev --group docs
	touch $@

# Apart from the tests: PennyLane loads JAX wherever it is installed. TorchQuantum asks for pins that nobody can meet.
$(BENCH)/.installed: pyproject.toml constraints.txt
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/$(INSTALL) --upgrade pip
	$(BENCH)/bin/$(INSTALL) --editable '.[pennylane,qiskit]' --group bench
	$(BENCH)/bin/$(INSTALL) --no-deps torchquantum
	touch $@
