# Everything works from an empty clone with Python 3.11+ and pip: `make demo`, `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
DEMO := runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: help demo test check test-slow torture bench bench-slow coverage clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(READY)  ## train, evaluate and sample on the embedded corpus, in about two minutes
	$(BIN)/gru-lm train @docstrings --minutes 1.5 --out $(DEMO)
	$(BIN)/gru-lm eval $(DEMO)
	$(BIN)/gru-lm sample $(DEMO) --length 300
	@echo
	@echo 'Next, in this folder:'
	@echo '  $(BIN)/gru-lm sample $(DEMO) --prompt "Return the " --temperature 0.7'
	@echo '  $(BIN)/gru-lm train YOUR.txt --minutes 5'
	@echo '  $(BIN)/gru-lm train YOUR.txt --minutes 5 --cell lstm'

test: $(READY)  ## all quick tests
	$(BIN)/python -m pytest -n auto --dist worksteal

check: $(READY)  ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test-slow: $(READY)  ## tests that take minutes
	$(BIN)/python -m pytest -n auto --dist worksteal -m slow

torture: $(READY)  ## tests that take many minutes
	$(BIN)/python -m pytest -m torture

coverage: $(READY)  ## branch coverage of the quick tests, subprocesses included
	$(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report=term

bench: $(READY)  ## speed, as ratios measured in one run (under 10 minutes)
	$(BIN)/python -m benchmarks

bench-slow: $(READY)  ## words and 1 GB of text: make bench-slow TRAIN=wiki.train.txt VALID=wiki.valid.txt
	$(BIN)/python -m benchmarks slow $(TRAIN) $(VALID)

clean:  ## remove the environment and what the tools left
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* build *.egg-info
