# `make run` and `make test` set up what they need in .venv, then do what they say.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: run test test-all lint format bench clean
.DELETE_ON_ERROR:

run: $(READY)
	$(BIN)/jaxfl run quickstart

test: $(READY)
	$(BIN)/python -m pytest -n auto

# What `make test` leaves out, compiled as for users.
test-all: $(READY)
	$(BIN)/python -m pytest -n auto --default-compiler -m 'slow or default_compiler'

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	$(BIN)/python -m benchmarks.round

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "jaxfl needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
