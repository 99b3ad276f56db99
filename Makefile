# Everything sets up .venv by itself. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
LINTS := lint-types lint-rules lint-docs lint-layers lint-style
.PHONY: demo demo-real test test-fast bench docs lint ui help $(LINTS)

PYTHON ?= python3
STUDY ?= config/config.yaml
CORES ?= 2
PORT ?= 5000
RESULTS ?= results
BIN := .venv/bin

# One thread in each process: two jobs side by side beat two threads in one by far.
export OMP_NUM_THREADS := 1

demo: .venv/installed ## run the default study (or STUDY=...); print where its report, tables and MLflow database are
	@$(BIN)/snakemake --profile profiles/local --cores $(CORES) --configfile $(STUDY); \
	$(BIN)/python workflow/scripts/summary.py $(STUDY); \
	echo "done in $$SECONDS s"

demo-real: ## the same with a real language model of 134.5 M parameters: a cut of config/studies/real.yaml
	@$(MAKE) --no-print-directory demo STUDY=config/studies/real-demo.yaml

test: lint ## run every test, the smoke study included
	@$(BIN)/python -m pytest -n $$(($(CORES) + 3)) --dist loadscope --no-loadscope-reorder # those of a cluster wait most of the time

test-fast: lint ## run what is fast, in less than three minutes: lint, and tests without training, servers or pipelines
	@$(BIN)/python -m pytest -q -n $(CORES) --dist loadfile -m "fast and not slow" tests/unit

bench: .venv/installed ## run the smoke study from scratch and print what each stage cost
	@rm -rf build/bench
	@$(BIN)/snakemake --profile profiles/local --cores $(CORES) --configfile config/studies/smoke.yaml --config results=build/bench
	@$(BIN)/python workflow/scripts/summary.py config/studies/smoke.yaml build/bench

lint: .venv/installed ## check style, types, layers and rules
	@$(MAKE) --no-print-directory --jobs $(CORES) $(LINTS)

lint-types:
	@$(BIN)/mypy

lint-style:
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

lint-docs:
	@$(BIN)/python docs/write.py --check

lint-layers:
	@$(BIN)/lint-imports --no-logo --no-cache

lint-rules:
	@$(BIN)/snakefmt --check Snakefile workflow
	@$(BIN)/snakemake --lint

docs: .venv/installed ## write the pages that say what the code says (config/README.md, docs/tables.md, ...)
	@$(BIN)/python docs/write.py

ui: .venv/installed ## show the MLflow runs on http://127.0.0.1:5000 (PORT=..., RESULTS=...)
	@test -f $(RESULTS)/mlflow.db || { echo "$(RESULTS)/mlflow.db is not there yet: run make demo first" >&2; exit 2; }
	@$(BIN)/python workflow/scripts/experiments.py sqlite:///$(abspath $(RESULTS))/mlflow.db http://127.0.0.1:$(PORT)
	@$(BIN)/mlflow server --workers 1 --host 127.0.0.1 --port $(PORT) --backend-store-uri sqlite:///$(abspath $(RESULTS))/mlflow.db

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed (PYTHON=... names one), not " + sys.version.split()[0])'
	@echo "installing the pinned packages into .venv (some minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
