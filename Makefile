# Every target does its own set-up on a machine that has only Python (3.10 or newer, with venv) and make.
#
#   make demo                      environment, installation, then the main job with its comparison table
#   make test                      environment, installation, then the fast tests
#   make PYTHON=python3.12 test    another interpreter
#   make TORCH_INDEX=URL demo      another torch build, for instance a CUDA one from the PyTorch wheel index

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
WORKERS ?= 2
DEMO_ARGS ?= --method kfac --compare

TORCH := $(shell grep -m1 '^torch==' constraints.txt)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# A file name that changes with TORCH_INDEX, so that choosing another build installs it.
TORCH_STAMP := $(VENV)/.torch-$(shell printf '%s' '$(TORCH_INDEX)' | cksum | cut -d' ' -f1)
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-all lint types bench clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/'

demo: $(VENV)/.installed  ## noisy K-FAC on digits, with calibrated uncertainty, beside AdamW and the deterministic twin
	$(BIN)/vogn train $(DEMO_ARGS)

test: $(VENV)/.installed-dev  ## the fast tests
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.installed-dev  ## the slow tests
	$(PYTEST) -m slow

test-all: $(VENV)/.installed-dev  ## every test
	$(PYTEST)

lint: $(VENV)/.installed-dev  ## ruff
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev  ## mypy
	$(BIN)/mypy

bench: $(VENV)/.installed-bench  ## compare IVON with ivon-opt, finish the quick studies, print all tables, look for steps that became slower
	$(ONE_THREAD) $(BIN)/python -m benchmarks.ivon_parity
	$(ONE_THREAD) $(BIN)/python -m benchmarks.regression_coverage run --jobs $(WORKERS)
	$(ONE_THREAD) $(BIN)/python -m benchmarks.classification run --data digits --methods kfac,kfac-det,vogn,vogn-det,adamw --jobs $(WORKERS)
	for data in mnist cifar10; do $(ONE_THREAD) $(BIN)/python -m benchmarks.classification report --data $$data; done
	$(ONE_THREAD) $(BIN)/python -m benchmarks.speed.step_time --short --compare

clean:  ## remove the environment and the caches
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "vogn needs Python 3.10 or newer; use make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# With TORCH_INDEX, torch alone comes from that index first; its version satisfies the pin in what follows.
$(TORCH_STAMP): constraints.txt | $(BIN)/python
	rm -f $(VENV)/.torch-*
ifneq ($(strip $(TORCH_INDEX)),)
	$(PIP) install --force-reinstall --index-url '$(TORCH_INDEX)' '$(TORCH)'
endif
	touch $@

# torch is named beside the packages that depend on it, so that one resolution chooses them all.
$(VENV)/.installed: pyproject.toml constraints.txt $(TORCH_STAMP)
	$(PIP) install --quiet -c constraints.txt '$(TORCH)' -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt $(TORCH_STAMP)
	$(PIP) install --quiet -c constraints.txt '$(TORCH)' -e '.[dev]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: pyproject.toml constraints.txt $(TORCH_STAMP)
	$(PIP) install --quiet -c constraints.txt '$(TORCH)' -e '.[dev,bench,vision]'
	touch $@ $(VENV)/.installed $(VENV)/.installed-dev
