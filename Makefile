# The commands of this project. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
PYTHON_PATHS := megatron_ssd launch tools benchmarks tests setup.py
SHELL_SCRIPTS = $(shell git ls-files '*.sh' '*.sbatch' .ci/run)
# More arguments for the demo's configuration or for pytest: make demo ARGS=run_dir=runs/again, make test ARGS="-k grading"
ARGS ?=
NEXT := .venv-next/bin/python
# Training, resuming, parity of layouts, conversion: everything that touches Megatron-Core and does without vLLM.
NEXT_TESTS := tests/distributed $(addprefix tests/unit/,dataset export models runtime training)

# In the order of the files, since the longest come first; tests/conftest.py says what stays together.
IN_TWO := --numprocesses 2 --dist loadscope --no-loadscope-reorder

.PHONY: help demo test test-slow test-next check format doctor venv venv-cpu venv-next lock clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: venv-cpu ## run the whole loop on the small world, ending with the table and the report's path
	@tools/system_packages.sh demo
	@$(BIN)/python launch/pipeline.py +experiment=demo $(ARGS)

test: venv ## run the test-suite in two processes, without the tests marked slow or gpu
	@tools/system_packages.sh test
	@# Threads that wait by spinning would take the other process's core.
	@OMP_WAIT_POLICY=passive $(BIN)/python -m pytest $(IN_TWO) -m "not slow and not gpu" $(ARGS)

test-slow: venv ## the tests marked slow, one after the other
	@tools/system_packages.sh test
	@$(BIN)/python -m pytest -m slow $(ARGS)

test-next: venv venv-next ## the tests of training with Python 3.12 and Megatron-Core 0.19.2, then both versions' losses
	@$(NEXT) -m pytest -m "not slow and not gpu" $(NEXT_TESTS) $(ARGS)
	@$(NEXT) -m tests.compare_versions $(BIN)/python $(NEXT)

check: venv ## lint, format, types, import direction, shell scripts, Dockerfile
	@$(BIN)/ruff check $(PYTHON_PATHS)
	@$(BIN)/ruff format --check $(PYTHON_PATHS)
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/shellcheck --external-sources $(SHELL_SCRIPTS)
	@$(BIN)/hadolint Dockerfile

format: venv ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix $(PYTHON_PATHS)
	@$(BIN)/ruff format $(PYTHON_PATHS)

doctor: venv-cpu ## what can run on this machine, and what is missing
	@$(BIN)/python tools/doctor.py

venv: ## make .venv from the locks, with what tests and checks need
	@PYTHON="$(PYTHON)" tools/make_venv.sh dev

venv-cpu: ## make .venv from the locks, with what the demo needs: about 4 GB
	@PYTHON="$(PYTHON)" tools/make_venv.sh cpu

venv-next: ## make .venv-next from its lock: Python 3.12, Megatron-Core 0.19.2, about 5 GB
	@PYTHON_NEXT="$(PYTHON_NEXT)" tools/make_venv_next.sh

lock: ## resolve the locks anew from setup.py
	@PYTHON="$(PYTHON)" tools/lock.sh
	@PYTHON_NEXT="$(PYTHON_NEXT)" tools/lock.sh next

clean: ## remove .venv, .venv-next and caches; runs/ stays
	@rm -rf $(VENV) .venv-next build ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
