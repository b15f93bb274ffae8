# Run `make` to list the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# More OpenMP threads than cores slow each other down tenfold.
export OMP_NUM_THREADS ?= 1
SUBJECT ?= mug
# Test processes. pytest distributes whole files, so each process builds its models once.
JOBS ?= 2

.PHONY: help install demo test test-all jax check lint audit sbom lock up deploy secrets clean site

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

$(BIN)/.installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# First the build requirements of source distributions (deepspeed), then the rest without isolation.
	$(BIN)/python -m pip install --quiet $$(grep -E '^(torch|setuptools|wheel|numpy)==' requirements.lock)
	$(BIN)/python -m pip install --quiet --no-build-isolation -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

install: $(BIN)/.installed  ## create .venv with the locked requirements
	@$(BIN)/dreambooth subject restore

demo: install  ## train, score and register the example subject
	$(BIN)/dreambooth run $(SUBJECT)

test: install  ## run the fast tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-all: install  ## run all tests that need no GPU
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not gpu"

$(BIN)/.installed-jax: requirements-jax.lock $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --constraint requirements.lock -r requirements-jax.lock
	touch $@

jax: $(BIN)/.installed-jax  ## add JAX to .venv; check and test training with it
	$(BIN)/pyright --pythonpath $(BIN)/python -p dreambooth_core/jax
	$(BIN)/python -m pytest -m jax tests/unit/jax

lint: install  ## check style, types, layers and settings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python -m dreambooth_core.config params.yaml presets/*.yaml

check: lint test  ## run lint and test; required before a push

$(BIN)/.installed-audit: pyproject.toml $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[audit]" --no-build-isolation
	touch $@

audit: $(BIN)/.installed-audit  ## list all licences; look up known vulnerabilities (needs a network)
	$(BIN)/python -m tools.licences
	$(BIN)/pip-audit --requirement requirements.lock --disable-pip --no-deps --strict

sbom: $(BIN)/.installed-audit  ## write sbom.json, the list of all packages (CycloneDX)
	$(BIN)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml \
		--output-reproducible --output-file sbom.json

lock:  ## resolve pyproject.toml into requirements.lock
	PYTHON=$(PYTHON) infra/lock.sh

up: install  ## start Prefect, MLflow and a worker on this machine
	$(BIN)/dreambooth up

deploy: install  ## register the deployments of prefect.yaml
	$(BIN)/prefect --no-prompt deploy --all

secrets:  ## generate the passwords of infra/compose.yaml
	@sh infra/services/secrets.sh infra/.env

$(BIN)/.installed-site: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --constraint requirements.lock "mkdocs-material>=9.8,<10"
	touch $@

site: $(BIN)/.installed-site  ## build the documentation as a site in .state/site/html
	rm -rf .state/site && mkdir -p .state/site/pages
	cp -r *.md docs .state/site/pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file infra/site/mkdocs.yml

clean: install  ## delete old work from the store
	$(BIN)/dreambooth clean
