# `make run` and `make test` set up what they need in .venv, then do what they say.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY_RUN := $(VENV)/.ready-run
READY := $(VENV)/.ready
READY_DOCS := $(VENV)/.ready-docs
READY_ALL := $(VENV)/.ready-all
CONTRACTS := $(addprefix tests/, aggregators/test_contract.py attacks/test_every_attack.py \
  preaggregators privacy data test_federation.py test_clients.py test_algorithms.py)

# Bytecode is kept even where the environment forbids it: the tests start hundreds of processes,
# each of which would compile jaxfl anew.
export PYTHONDONTWRITEBYTECODE =

EXTRAS := flower hf tfds torch tensorboard wandb mlflow ray

.PHONY: run test test-all test-extras $(EXTRAS:%=test-extra-%) lint format bench docs clean
.DELETE_ON_ERROR:

run: $(READY_RUN)
	$(BIN)/jaxfl run quickstart

# Without run-time checks of types and shapes, which test-all makes.
test: $(READY)
	$(BIN)/python -m pytest -n auto --jaxtyping-packages=

# What `make test` leaves out; what looks at programs as users get them; run-time checks of types
# and shapes under what every part must do; and the site.
test-all: $(READY_ALL)
	$(BIN)/python -m pytest -n auto -m 'slow and not default_compiler'
	$(BIN)/python -m pytest -n auto --default-compiler -m default_compiler
	$(BIN)/python -m pytest -n auto $(CONTRACTS)
	$(BIN)/mkdocs build --strict

# What users install beside jaxfl, each alone in a new environment: some 10 GB for a time.
test-extras: $(EXTRAS:%=test-extra-%)

$(EXTRAS:%=test-extra-%): test-extra-%:
	PYTHON=$(PYTHON) .ci/extra $*

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY_DOCS)
	$(BIN)/mkdocs build --strict

bench: $(READY)
	$(BIN)/python -m benchmarks.round

# One environment, filled as far as a target needs: to run, to test and lint, to build the site, all.
$(READY_RUN): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "jaxfl needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(READY): $(READY_RUN)
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

$(READY_DOCS): $(READY_RUN)
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	@touch $@

$(READY_ALL): $(READY)
	$(BIN)/python -m pip install --quiet -e '.[all]'
	@touch $@

clean:
	rm -rf $(VENV) runs site .pytest_cache .ruff_cache
