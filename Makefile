# make demo and make test do everything on a fresh machine; see README.md.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench bench-kernels clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The CPU build: the default wheel brings gigabytes of CUDA.
TORCH := torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BENCH_ARGS ?=

help:
	@echo "make setup | demo | test | lint | bench | bench-kernels | clean"

setup: $(STAMP)

$(STAMP): pyproject.toml Makefile
	@command -v g++ >/dev/null || command -v clang++ >/dev/null || { \
	  echo "error: linking compiled models needs a C++ compiler: apt-get install g++"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or later is needed: make PYTHON=/path/to/python3.11 setup"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet 'pip>=25.1'
	# From the configured indexes where they have it, else from PyTorch's own.
	$(BIN)/pip install --quiet '$(TORCH)' 2>/dev/null \
	  || $(BIN)/pip install --extra-index-url $(TORCH_INDEX) '$(TORCH)'
	$(BIN)/pip install --quiet --editable '.[demo]' --group dev
	touch $@

demo: setup
	$(BIN)/python -m benchmarks.demo_digits

test: setup
	$(BIN)/pytest -q

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m benchmarks.bench_models $(BENCH_ARGS)

bench-kernels: setup
	$(BIN)/python -m benchmarks.bench_kernels $(BENCH_ARGS)

clean:
	rm -rf $(VENV) out build dist *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
