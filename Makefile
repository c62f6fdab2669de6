# vrts: `make help` lists what there is. Everything is set up in .venv on first use.
.DEFAULT_GOAL := help
VENV := .venv
VLLM := .venv-vllm
PY := $(VENV)/bin/python
# Several threads a process are slower than one on few contended cores.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help install demo test test-fast test-vllm lint format types docs warmup clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: $(VENV)/installed ## Create .venv with vrts and everything that it needs

$(VENV)/installed: pyproject.toml
	python3 -m venv $(VENV)
	$(PY) -m pip install --quiet --editable '.[dev]'
	touch $@

demo: install ## The main job on the embedded model: predict, train with GRPO, predict again
	$(VENV)/bin/vrts demo

test: install ## Lint, types and all tests but those that need a GPU
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PY) -m pytest -n 2 --dist worksteal -m "not gpu" --durations=20

test-fast: install ## The tests that take no more than a second each, and one of each command
	$(PY) -m pytest -n 2 --dist worksteal -m "not gpu and not slow"

test-vllm: $(VLLM)/installed ## The tests of vLLM as an engine, on its CPU build (3.5 GB in .venv-vllm)
	TORCHDYNAMO_DISABLE=1 $(VLLM)/bin/python -m pytest tests/models/vllm --durations=10

$(VLLM)/installed: pyproject.toml tools/vllm_env.sh
	tools/vllm_env.sh $(VLLM)
	touch $@

lint: install ## Check style and docstrings
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: install ## Rewrite the code in the project's style
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

types: install ## Check types
	$(VENV)/bin/mypy

docs: install ## Build the site in build/site; a broken link or reference fails
	$(PY) -m mkdocs build

warmup: install ## Make the embedded checkpoint in assets/tiny again
	$(PY) -m tools.tiny.warmup

clean: ## Remove .venv, runs and caches
	rm -rf $(VENV) $(VLLM) build runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
