# One word per habit. `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two OpenMP threads of two processes on two cores slow one another tenfold.
export OMP_NUM_THREADS ?= 1
SUBJECT ?= mug
# Test processes: files of tests are shared out, so that each builds its models once.
JOBS ?= 2

.PHONY: help install demo test test-all jax check lint lock up deploy clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

$(BIN)/.installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# First what source distributions (deepspeed) need to build, then the rest, without isolation.
	$(BIN)/python -m pip install --quiet $$(grep -E '^(torch|setuptools|wheel|numpy)==' requirements.lock)
	$(BIN)/python -m pip install --quiet --no-build-isolation -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

install: $(BIN)/.installed  ## make .venv with the locked requirements
	@$(BIN)/dreambooth subject restore

demo: install  ## photos -> best checkpoint, scored and registered, for the example subject
	$(BIN)/dreambooth run $(SUBJECT)

test: install  ## the quick tests (the claims)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-all: install  ## with the slow tests and those that start servers
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not gpu"

$(BIN)/.installed-jax: requirements-jax.lock $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --constraint requirements.lock -r requirements-jax.lock
	touch $@

jax: $(BIN)/.installed-jax  ## add JAX to .venv; check and test the training through it
	$(BIN)/pyright --pythonpath $(BIN)/python -p dreambooth_core/jax
	$(BIN)/python -m pytest -m jax tests/unit/jax

lint: install  ## style, types, layers, settings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python -m dreambooth_core.config params.yaml presets/*.yaml

check: lint test  ## what must pass before a push

lock:  ## resolve pyproject.toml anew into requirements.lock
	PYTHON=$(PYTHON) infra/lock.sh

up: install  ## Prefect server, MLflow server and a worker on this machine
	$(BIN)/dreambooth up

deploy: install  ## register the deployments of prefect.yaml
	$(BIN)/prefect --no-prompt deploy --all

clean: install  ## prune the store of old work
	$(BIN)/dreambooth clean
