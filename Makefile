# Each target sets up all that it needs. Set-up is repeated only when the requirements change.
PYTHON ?= python3
CONFIG ?= fashion_rn20_gnpn
ARGS ?=
VENV := .venv
RUN_READY := $(VENV)/.run-ready
DEV_READY := $(VENV)/.dev-ready

.PHONY: help train test test-slow lint bench data clean

help:
	@echo "make train [CONFIG=name] [ARGS='--set section.key=value ...']   train an experiment of configs/"
	@echo "make test         the tests            make test-slow   the slow ones too"
	@echo "make lint         formatting, static checks and types"
	@echo "make bench        every number that this project publishes"
	@echo "make clean        remove the environment and build products; data and runs stay"

train: $(RUN_READY)
	$(VENV)/bin/python train.py --config $(CONFIG) $(ARGS)

test: $(DEV_READY) data
	$(VENV)/bin/python -m pytest -n 2 -m "not slow"

test-slow: $(DEV_READY) data
	$(VENV)/bin/python -m pytest

lint: $(DEV_READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

bench: $(DEV_READY) data
	PATH="$(abspath $(VENV))/bin:$$PATH" ./run_benchmarks.sh

data: $(RUN_READY)
	$(VENV)/bin/python -m datasets.fashion_mnist

$(RUN_READY): requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(DEV_READY): requirements-dev.txt $(RUN_READY)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
