# `make help` lists the targets. The first one that needs it installs everything into .venv.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check -q
# Packages of CUDA builds of torch; a CPU-only torch (CPU_INDEX=<index of CPU wheels>) needs none of them.
CUDA_PACKAGES := ^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==

export PATH := $(abspath $(VENV))/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true

.DEFAULT_GOAL := help
.PHONY: help install repro check lint test test-fast test-slow test-gpu test-platform fix docs experiments ui serve

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(READY)  ## Make .venv and install what requirements.lock pins

repro: $(READY)  ## Prepare, train, evaluate and export as params.yaml says, then register
	@git rev-parse HEAD >/dev/null 2>&1 || { echo "error: DVC works in a git repository with a commit. Clone the project," \
		"or make one of this folder: git init && git add . && git commit -m Start"; exit 1; }
	dvc repro
	hyojo register
	@printf '%s\n' "Next:" \
		"  make ui                                    runs, curves and versions, on http://127.0.0.1:5000" \
		"  make serve                                 a page to try the champion, on http://127.0.0.1:5001" \
		"  $(VENV)/bin/hyojo predict data/sample.zip    answers for pictures"

check: lint test  ## All that a change must pass: lint, then the test suite

lint: $(READY)  ## Check style, format, the order of the rooms, types, and that generated documents are fresh
	ruff check .
	ruff format --check .
	lint-imports --no-cache
	mypy | mypy-baseline filter
	python docs/generate.py --check

test: $(READY)  ## Run the test suite, a file at a time on each of up to four cores
	OMP_NUM_THREADS=1 python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-fast: $(READY)  ## Run the tests that start no DVC, no other process and no training: less than a minute
	python -m pytest -q -m "not slow and not heavy and not gpu and not platform"

test-slow: $(READY)  ## Run the long tests too: kill loops, all modes of DVC
	python -m pytest -q -m "not gpu and not platform"

test-gpu:  ## Check and time the way to a GPU, or to the CPU in small; needs neither DVC nor MLflow
	$(PYTHON) benchmarks/gpu.py $(ARGS)

test-platform: $(READY)  ## Play docs/team.md on real servers; says what it needs, PostgreSQL and '.[platform]'
	python -m pytest -v -s -x -m platform tests/platform

fix: $(READY)  ## Mend style and format, and write generated documents and the types' baseline anew
	ruff check --fix .
	ruff format .
	-mypy | mypy-baseline sync
	python docs/generate.py

docs: $(READY)  ## Write what documents take from the code
	python docs/generate.py

# DVC shows all params of each; what tells experiments apart fits a terminal.
experiments: $(READY)  ## List DVC's experiments: their main scores, and the params that differ
	dvc exp show --no-pager --only-changed --hide-workspace --drop '.*(balanced|nll|top2|auroc|_clean|_tta|_plain|/)'

ui: $(READY)  ## Open the MLflow UI
	hyojo ui

serve: $(READY)  ## Serve the champion over HTTP
	hyojo serve

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@echo "Installing into $(VENV); the first time takes some minutes."
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
ifdef CPU_INDEX
	@grep -E '^(torch|torchvision)==' requirements.lock > $(VENV)/torch.txt
	@grep -vE '$(CUDA_PACKAGES)' requirements.lock > $(VENV)/rest.txt
	@$(PIP) install --no-compile --index-url $(CPU_INDEX) -r $(VENV)/torch.txt
	@$(PIP) install --no-compile -r $(VENV)/rest.txt
else
	@$(PIP) install --no-compile -r requirements.lock
endif
	@$(VENV)/bin/python -m compileall -qq -j 0 -x 'site-packages/.*/tests?/' $(VENV)/lib || true  # some files are no Python
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@
