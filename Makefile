# make quickstart   the main job, offline, on the embedded demo (sets up what is missing)
# make test         the tests (8 to 12 minutes on 2 cores)
# make coverage     the same, and which lines they do not reach
# make test-all     also the slow ones and those on a real Slurm
# make test-interop the real circuit-tracer, SAELens and ViSAEBench, in an environment of their own
# make docs         this project's pages as a site in site/; warnings are errors
# make lint         ruff and mypy; Biome for the scripts of the pages
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
NODE_BIN := node_modules/.bin
# programs that came with the environment are found by tests
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: quickstart test coverage test-all test-interop docs docs-serve docs-tools lint format setup tools clean
quickstart: setup
	$(BIN)/python -m clt_lightning fit --config configs/quickstart.yaml

test: setup
	-@$(MAKE) --no-print-directory tools
	$(BIN)/python -m pytest -n 2 --dist worksteal

# which lines no test runs in its own process
coverage: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov=clt_lightning --cov-report=term:skip-covered

test-all: setup
	-@$(MAKE) --no-print-directory tools
	-@$(MAKE) --no-print-directory docs-tools
	$(BIN)/python -m pytest -n 2 --dist worksteal -m ""

# these pin other versions than this package takes; where they cannot be installed, the tests say so and are skipped
test-interop: setup
	test -x .venv-interop/bin/python || $(PYTHON) -m venv .venv-interop
	.venv-interop/bin/python -m pip install --quiet 'circuit-tracer==0.5.0' 'sae-lens==6.54.12' || true
	.venv-interop/bin/python -m pip install --quiet 'visaebench==0.1.0' --editable . || true
	$(BIN)/python -m pytest tests/interop -m interop -rs

docs: docs-tools
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-serve: docs-tools
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --no-strict

lint: setup tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(NODE_BIN)/biome check

format: setup tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(NODE_BIN)/biome check --write

# the stamp is newer than pyproject.toml when the environment is up to date: a second call does nothing
setup: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# What checks the scripts and the pages, from npm; node itself comes with the environment. The tests can do without.
tools: node_modules/.installed
node_modules/.installed: package.json package-lock.json | setup
	npm ci --no-audit --no-fund --prefer-offline --fetch-retries=1 --loglevel=error
	touch $@

# what builds the site; the tests of the site are skipped without it
docs-tools: $(VENV)/.docs-installed
$(VENV)/.docs-installed: pyproject.toml | setup
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf site $(VENV) .venv-interop node_modules .pytest_cache .mypy_cache .ruff_cache
