# make quickstart   the main job, offline, on the embedded demo (sets up what is missing)
# make test         the tests (under 8 minutes on 2 cores)
# make test-all     also the slow ones and those on a real Slurm
# make lint         ruff and mypy
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# programs that came with the environment are found by tests
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: quickstart test test-all lint format setup clean
quickstart: setup
	$(BIN)/python -m clt_lightning fit --config configs/quickstart.yaml

test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-all: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -m ""

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the stamp is newer than pyproject.toml when the environment is up to date: a second call does nothing
setup: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
