# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := pip install --quiet --disable-pip-version-check --constraint constraints.txt
PIP := $(BIN)/$(INSTALL)

.PHONY: demo real serve test test-all test-real library coverage check docs results bases bench compat release format clean

demo: $(VENV)/.installed
	$(BIN)/qpeft demo

# the run of docs/real_model.md: a quarter of an hour on two cores, and a download of 93 MB; again, to resume
real: $(VENV)/.installed build/smollm2/source.json
	$(BIN)/python scripts/real_run.py
	$(BIN)/python evidence/page_tables.py docs/real_model.md
	$(BIN)/python evidence/pictures.py

# the run of docs/small_adapters.md: twenty minutes on two cores; again, to resume. DATA is a folder with the texts
# that are not in the repository; SERVER=URL asks a server that has the adapters
serve: $(VENV)/.installed build/smollm2/source.json
	$(BIN)/python scripts/serve_run.py
	$(BIN)/python evidence/page_tables.py docs/small_adapters.md

# `check` and `docs` at the same time, each on one core; the output of each stays in one piece
BESIDE := $(MAKE) --jobs 2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
LIBRARY_TESTS := tests/circuits tests/core tests/testing tests/test_imports.py
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup

# for every change; the tests marked `long` or `real` are left out
test:
	$(BESIDE) check docs
	$(PYTEST) -m "not long and not real"

# before a release
test-all:
	$(BESIDE) check docs
	$(PYTEST) -m "not real"

# on a pretrained base, which is downloaded (93 MB); CI runs those that are not long
REAL := real
test-real: $(VENV)/.installed-dev build/smollm2/source.json
	$(BIN)/python -m pytest -m "$(REAL)" tests/real

build/smollm2/source.json: | $(VENV)/.installed
	$(BIN)/python -c 'import gguf' 2>/dev/null || $(PIP) --editable '.[lab,gguf]'
	$(BIN)/qpeft base smollm2

# the tests of the library, on its wheel, in an environment that has nothing but the packages that it needs
library: $(VENV)/.installed-dev
	rm -rf dist/library
	$(BIN)/python -m build --wheel --outdir dist/library
	$(PYTHON) -m venv dist/library/venv
	dist/library/venv/bin/$(INSTALL) dist/library/*.whl pytest pytest-xdist hypothesis
	dist/library/venv/bin/qpeft --help; test $$? -eq 2
	dist/library/venv/bin/python -m pytest --numprocesses 2 --dist loadgroup --library -m "not long" $(LIBRARY_TESTS)

# which lines of src the tests of `make test` run
coverage: $(VENV)/.installed-dev
	$(PYTEST) -m "not long and not real" --cov qpeft --cov-report term-missing:skip-covered

check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python scripts/size.py --check

docs: $(VENV)/.installed-dev
	$(BIN)/sphinx-build --quiet --fail-on-warning --builder html docs docs/_build/html

# the tables and pictures of the pages, and the evidence of `qpeft.suggest`, from the stored rows
results: $(VENV)/.installed-dev
	$(BIN)/python evidence/page_tables.py
	$(BIN)/python benchmarks/bench.py --page
	$(BIN)/python evidence/suggest_evidence.py
	$(BIN)/python evidence/pictures.py
	$(BIN)/python docs/drawings/method_drawings.py

# the base of evidence/PROTOCOL.md that is not in the repository: an hour
bases: $(VENV)/.installed-dev
	$(BIN)/python scripts/build_base.py llama10m --out build/llama10m

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/bench.py

# on the oldest and the newest of what qpeft supports; environments in .nox
compat: $(VENV)/.installed-dev
	$(BIN)/nox

# wheel and sdist, and the demo from the wheel in an environment that has nothing else
release: $(VENV)/.installed-dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv dist/venv
	dist/venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt "$$(echo dist/*.whl)[lab]"
	cd dist && venv/bin/qpeft demo --out demo-run

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) .nox dist docs/_build demo-run real-run serve-run

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "qpeft needs Python 3.11 or newer; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) --editable ".[lab]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[lab,gguf,pennylane,qiskit,ray,tensorboard]' --group dev --group docs
	touch $@
