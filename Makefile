# One environment in .venv; every target sets it up first (a second call costs nothing).
VENV   := .venv
PYTHON := $(VENV)/bin/python
STAMP  := $(VENV)/.complete
ARGS   ?=

.PHONY: help setup quickstart train sweep dashboard bench test test-all mutants check docs format lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

setup: $(STAMP)  ## one environment in .venv, with uv where it is installed, else with pip

$(STAMP): pyproject.toml requirements.lock
	@./.ci/setup $(VENV)
	@touch $@

quickstart: setup  ## the main job on synthetic data: no download, no GPU, about a minute on two CPU cores
	@$(PYTHON) -m cifar_lab experiment=quickstart $(ARGS)

train: setup  ## one run on CIFAR-10: make train ARGS="data.root=... model=resnet10"
	@$(PYTHON) -m cifar_lab $(ARGS)

sweep: setup  ## all combinations: make sweep ARGS="optimizer.lr=0.01,0.03 seed=0,1,2"
	@$(PYTHON) -m cifar_lab -m $(ARGS)

dashboard: setup  ## TensorBoard on outputs/, on this machine only
	@trap : INT; $(PYTHON) -m cifar_lab.dashboard $(ARGS) || [ $$? = 130 ]

bench: setup  ## ours against a bare loop, the original report's and a template: make bench ARGS=--short
	@$(PYTHON) -m benchmarks $(ARGS)

test: setup  ## the quick tests, on up to four cores (ARGS=-n0: on one)
	@$(PYTHON) -m pytest -m "not slow" -n logical --maxprocesses 4 --dist worksteal $(ARGS)

test-all: setup  ## also the slow ones
	@$(PYTHON) -m pytest $(ARGS)

mutants: setup  ## which changed line would no test notice? make mutants ARGS="--sample 15 sweep/supervisor"
	@./.ci/mutants $(VENV)
	@$(VENV)/mutants/bin/python -m tests.mutants $(ARGS)

check: setup docs  ## format, lint, types, import contract, the API's pages
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

docs: setup  ## the API's pages in docs/api/, from the docstrings
	@$(VENV)/bin/python .ci/pages.py docs/api

format: setup  ## rewrite the files as `make check` wants them
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

lock:  ## resolve requirements.lock anew (needs uv)
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade \
		--generate-hashes --no-emit-index-url --no-annotate --quiet --output-file requirements.lock

clean:  ## remove the environment and what tools left; never outputs/
	rm -rf $(VENV) dist docs/api .pytest_cache .ruff_cache .mypy_cache
