# Two commands: `make run` and `make test`. Both set everything up on a machine with Python 3.11, pip and git.
.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CONFIG ?= configs/movielens-100k.yaml

.PHONY: help setup run test test-fast lint lock kubeflow clean

help:
	@echo "make run        set up, fetch MovieLens-100K, run the whole pipeline"
	@echo "make test       set up, lint, type-check, run every test"
	@echo "make test-fast  the tests that take no whole pipeline run"
	@echo "make kubeflow   compile for Kubeflow, execute the compiled steps here, compare with the local run"
	@echo "make lock       write requirements.lock again from pyproject.toml"

setup: $(READY)

# The lock file alone decides what is installed; hashes are checked. uv comes by pip into the environment when missing.
$(READY): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	@if command -v uv >/dev/null; then echo uv > $(VENV)/.uv; else \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check uv && echo $(BIN)/uv > $(VENV)/.uv; fi
	VIRTUAL_ENV=$(abspath $(VENV)) $$(cat $(VENV)/.uv) pip install --quiet --no-deps --require-hashes --compile-bytecode -r requirements.lock
	VIRTUAL_ENV=$(abspath $(VENV)) $$(cat $(VENV)/.uv) pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

run: $(READY)
	@test "$(CONFIG)" != configs/movielens-100k.yaml || $(BIN)/twotower data movielens-100k
	@$(BIN)/twotower run --config $(CONFIG)

test: lint
	$(BIN)/python -m pytest

test-fast: $(READY)
	$(BIN)/python -m pytest -m "not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock:
	uv pip compile pyproject.toml --extra dev --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet --output-file requirements.lock

# The cluster's volume is this folder; the object store and the pods are folders of runs/kubeflow.
KUBEFLOW := runs/kubeflow
kubeflow: run
	@mkdir -p $(KUBEFLOW)
	@$(BIN)/twotower kubeflow compile --config $(CONFIG) --image twotower:local --pipeline-root minio://mlpipeline/v2/artifacts \
	  --set 'kubeflow.volumes=[{claim: twotower, path: "$(CURDIR)"}]' --set kubeflow.push=served/kubeflow --output $(KUBEFLOW)/pipeline.yaml
	@$(BIN)/python -m kubeflow.conformance $(KUBEFLOW)/pipeline.yaml --folder $(KUBEFLOW)
	@$(BIN)/twotower batch --config $(CONFIG) --output $(KUBEFLOW)/local.parquet
	@$(BIN)/twotower batch --config $(CONFIG) --set output.push=served/kubeflow --output $(KUBEFLOW)/cluster.parquet
	@$(BIN)/python -m kubeflow.comparison $(KUBEFLOW)/local.parquet $(KUBEFLOW)/cluster.parquet

clean:
	rm -rf $(VENV) runs served
