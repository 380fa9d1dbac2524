# `make demo` shows what the library does; `make test` runs every check. Both create .venv on first use.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint docs bench pins clean

demo: .venv/demo
	$(BIN)/offroad reproduce traffic --profile quick

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: .venv/bench
	$(BIN)/python benchmarks/agents.py

SUMO_LIBRARIES := libx11-6 libxext6 libxrender1 libgl1 libatomic1

# Each stamp file says that one set of extras is installed; a change of the pins or of pyproject.toml renews it.
.venv/demo: EXTRAS :=
.venv/dev: EXTRAS := [dev]
.venv/docs: EXTRAS := [docs]
.venv/bench: EXTRAS := [bench]
.venv/dev: CHECK = $(BIN)/python -c 'import libsumo' 2>/dev/null || { \
	  echo "SUMO, which the tests drive, lacks system libraries: sudo apt install $(SUMO_LIBRARIES)"; exit 1; }
.venv/demo .venv/dev .venv/docs .venv/bench: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing offroad$(EXTRAS) and its pinned dependencies into .venv"
	@$(INSTALL) --editable '.$(EXTRAS)'
	@$(CHECK)
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "offroad needs Python 3.11 or newer; '$(PYTHON)' is older or missing: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot create a virtual environment: install python3-venv (Debian: sudo apt install python3-venv)"; exit 1; }
	@$(PYTHON) -m venv .venv

# Renews constraints.txt from what pip resolves today for all extras at once.
pins:
	rm -rf .cache/pins
	$(PYTHON) -m venv .cache/pins
	.cache/pins/bin/pip install --quiet --editable '.[dev,docs,bench,wandb]'
	.cache/pins/bin/pip freeze --exclude-editable | sed -E 's/^(torch==[0-9.]+)\+cpu$$/\1/' > constraints.txt

clean:
	rm -rf .venv .cache site dist build .pytest_cache .ruff_cache .import_linter_cache
	find offroad tests benchmarks docs -name __pycache__ -prune -exec rm -rf {} +
