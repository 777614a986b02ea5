# make demo and make test do everything on a fresh machine; see README.md.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup browser images emulator demo test test-all lint docs bench bench-kernels gpu-kit deepsparse clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The CPU build: the default wheel brings gigabytes of CUDA.
TORCH := torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BENCH_ARGS ?=
# What README.md and docs/performance.md show. `make bench PEERS=onnxruntime,openvino-f32,deepsparse` after `make deepsparse`.
# BENCH_SET: float32, int8, or both of them; by default what this CPU can run.
BENCH_SET ?= $(if $(shell grep -m1 -o avx512_vnni /proc/cpuinfo),both,float32)
BENCH_MODELS ?= resnet18 resnet50 mobilenet_v1 mobilenet_v2
BENCH_PATTERNS ?= dense,1x16@0.5,1x16@0.25,1x4@0.5,2:4,1:4,1:16,unstructured@0.1
BENCH_THREADS ?= 1,2
DTYPES_float32 := float32
TARGETS_float32 := avx512
PEERS_float32 := onnxruntime,openvino-f32
DTYPES_int8 := int8
TARGETS_int8 := avx512_vnni
PEERS_int8 := onnxruntime-int8,openvino-int8
DTYPES_both := float32 int8
TARGETS_both := $(TARGETS_float32),$(TARGETS_int8)
PEERS_both := $(PEERS_float32),$(PEERS_int8)
PEERS ?= $(PEERS_$(BENCH_SET))
RESULTS := benchmarks/results
# Debian's package without a desktop: 100 MB of downloads.
CHROMIUM := chromium-headless-shell
# Of `make gpu-kit`.
GPU ?= sm_80,sm_90a
KIT ?= out/gpu-kit
KIT_PYTHON ?= 3.12
# A discontinued peer: no wheels after Python 3.11, and numpy and onnx older than ours.
DEEPSPARSE := deepsparse==1.8.0 numpy==1.26.4 onnx==1.14.1
DEEPSPARSE_VENV := .venv-deepsparse
DEEPSPARSE_PYTHON ?= python3.11

help:
	@echo "make setup | browser | images | demo | test | test-all | lint | docs | bench | bench-kernels | gpu-kit | deepsparse | clean"

setup: $(STAMP)

$(STAMP): pyproject.toml Makefile
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

# The report's tests open it in a Chromium. Where none can be installed they are skipped.
browser:
	@for name in $(CHROMIUM) chromium chromium-browser google-chrome google-chrome-stable; do \
	  if command -v $$name >/dev/null; then exit 0; fi; done; \
	{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes \
	  --no-install-recommends -o DPkg::Lock::Timeout=60 $(CHROMIUM); } >/dev/null 2>&1 \
	  || echo "no Chromium, tests of the report are skipped: as root, apt-get install $(CHROMIUM)"

# Fashion-MNIST, of benchmarks/fashion: 30 MB of downloads. Where it is missing one test is skipped.
images:
	@test -d /usr/share/datasets/fashion-mnist || { \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes \
	  -o DPkg::Lock::Timeout=60 dataset-fashion-mnist; } >/dev/null 2>&1 \
	  || echo "no Fashion-MNIST, its test is skipped: as root, apt-get install dataset-fashion-mnist"

emulator:
	@command -v g++ >/dev/null || { \
	  echo "error: the tests compile an emulator of GPUs: apt-get install g++"; exit 1; }

# Commands are started hundreds of times: each would compile our modules, where this is set.
test test-all: export PYTHONDONTWRITEBYTECODE =

# Two workers, but for the tests that want the machine to themselves. Those are looked for where they are: to import all
# the others takes longer than they do.
ALONE = $$(grep -rlF mark.alone tests --include='*.py')
test: emulator setup browser images
	$(BIN)/pytest -q -n 2 --dist worksteal --durations=20 -m 'not long and not alone'
	$(BIN)/pytest -q -m 'alone and not long' $(ALONE)

# Before a release: the long sweeps too, and every property on ten times as many examples or more.
test-all: emulator setup browser images
	NMCOMPILE_THOROUGH=1 $(BIN)/pytest -q -n 2 --dist worksteal -m 'not alone'
	NMCOMPILE_THOROUGH=1 $(BIN)/pytest -q -m alone $(ALONE)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Of what is in docs/, and of the code: out/site/index.html. A link that leads nowhere is an error.
docs: setup
	$(BIN)/python -m docs.generate
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: setup
	@test -n '$(TARGETS_$(BENCH_SET))' || { \
	  echo "error: BENCH_SET is '$(BENCH_SET)': expected float32, int8 or both"; exit 1; }
	mkdir -p out
	$(BIN)/nmc bench $(BENCH_MODELS:%=benchmarks.zoo:%) --shape input=1,3,224,224 \
	  --patterns $(BENCH_PATTERNS) --threads $(BENCH_THREADS) \
	  --targets $(TARGETS_$(BENCH_SET)) --against $(PEERS) \
	  --rounds 8 --patience 900 --output $(RESULTS)/models.json $(BENCH_ARGS)
	$(BIN)/nmc bench report $(RESULTS)/models.json --output out/report.html
	for dtype in $(DTYPES_$(BENCH_SET)); do $(BIN)/python -m benchmarks.bench_density --dtype $$dtype; done
	$(BIN)/python -m benchmarks.report

bench-kernels: setup
	$(BIN)/python -m benchmarks.bench_kernels $(BENCH_ARGS)

# A folder to copy to a machine with a GPU; `python bench_gpu.py` there checks and times all kernels.
# KIT_PYTHON: versions of Python there, besides the one of $(VENV).
gpu-kit: setup
	$(BIN)/python -m benchmarks.gpu_kit --gpu $(GPU) --python '$(KIT_PYTHON)' --output $(KIT)

# For `make bench PEERS=onnxruntime,openvino-f32,deepsparse`. Its licence allows evaluation only, not production.
deepsparse: $(DEEPSPARSE_VENV)/.installed

$(DEEPSPARSE_VENV)/.installed: Makefile
	@$(DEEPSPARSE_PYTHON) -c 'import sys; sys.exit(not (3, 8) <= sys.version_info < (3, 12))' || { \
	  echo "error: DeepSparse needs Python 3.8 to 3.11: make DEEPSPARSE_PYTHON=/path/to/python3.11 deepsparse"; exit 1; }
	test -x $(DEEPSPARSE_VENV)/bin/python || $(DEEPSPARSE_PYTHON) -m venv $(DEEPSPARSE_VENV)
	$(DEEPSPARSE_VENV)/bin/pip install --quiet --only-binary :all: $(DEEPSPARSE)
	touch $@

clean:
	rm -rf $(VENV) $(DEEPSPARSE_VENV) out build dist *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
