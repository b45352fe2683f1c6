# Every target sets up what it needs first. ARGS= goes to the command: `make demo ARGS=--once`, `make bench ARGS=api`.
ARGS ?=
BIN := .venv/bin
# Sets have the same order in every run, so that a schedule that failed fails again.
export PYTHONHASHSEED ?= 0
.DEFAULT_GOAL := help
.PHONY: help install lock demo test test-k8s check bench conformance clean

help:  ## this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install:  ## system packages and .venv, where missing
	@scripts/install

lock: install  ## write requirements.lock anew from pyproject.toml
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade \
		--generate-hashes --no-header --no-annotate --quiet --output-file requirements.lock
	$(BIN)/uv pip compile pyproject.toml --constraint requirements.lock --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate --quiet --output-file requirements-run.lock
	@scripts/install

demo: install  ## a whole cloud with two tenants, live; ARGS=--once ends by itself
	@$(BIN)/alcor demo $(ARGS)

check: install  ## formatting, lint, types, import contracts
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports

# Files in the order of tests/conftest.py, not by how many tests they have: the longest have few.
test: check  ## all that CI runs
	@$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-k8s: install  ## the chart on a real Kubernetes, built from source once (minutes); needs root and Go
	@scripts/tools k8s
	@$(BIN)/python -m tests.k8s $(ARGS)

bench: install  ## the table of figures; ARGS= picks parts
	@$(BIN)/python -m bench $(ARGS)

conformance: install  ## real OpenStack clients against a running cloud
	@$(BIN)/pytest tests/conformance $(ARGS)

clean:  ## what was built here; never data
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
