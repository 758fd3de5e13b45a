# Two commands: `make run` and `make test`. Both set everything up on a machine with Python 3.11, pip and git.
.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# The version that kubeflow/Dockerfile has: what resolves and installs is part of what is installed.
UV := $(BIN)/uv
UV_VERSION := 0.13.9
UV_READY := $(VENV)/.uv-$(UV_VERSION)
READY := $(VENV)/.ready
CONFIG ?= configs/movielens-100k.yaml

.PHONY: help setup run notebook test test-fast test-faults test-portable test-kubeflow lint lock clean bench-setup bench-lock bench-quality bench-ablations bench-new-items conformance fuzz-serving native bench-serving bench-requests bench-index bench-training bench-scale bench-published bench-ranking kubeflow

help:
	@echo "make run        set up, fetch MovieLens-100K, run the whole pipeline"
	@echo "make notebook   execute docs/notebook/retrieval.ipynb on that run; with outputs in runs/notebook"
	@echo "make test       set up, lint, type-check, run every test but those of the targets test-*"
	@echo "make test-fast  the tests that are not marked as slow"
	@echo "make test-faults  stages killed, interrupted, their disk full, artifacts damaged, PostgreSQL gone; minutes"
	@echo "make test-portable  every Beam stage in worker processes of their own, one of them killed; minutes"
	@echo "make test-kubeflow  the compiled steps, each in an interpreter of its own, on two kinds of metadata store; minutes"
	@echo "make conformance    TF Serving's interface, tested on the development server or on ARGS"
	@echo "make fuzz-serving   20,000 hostile requests to the development server, and what is in its memory meanwhile"
	@echo "make native     the pushed model's own latency, by the C++ code that TF Serving runs"
	@echo "make bench-serving  latency and throughput of the development server"
	@echo "make bench-requests  what a request costs by its history, and beside the TFRS tutorials' model"
	@echo "make bench-index  the index layers beside ScaNN, faiss, hnswlib and usearch at equal recall, one table"
	@echo "make bench-training  a training step beside the plain TFRS loop, at 10k, 100k and 1M items"
	@echo "make bench-scale  the whole pipeline at 100k, 1M and 10M interactions, beside implicit's ALS"
	@echo "make bench-published  our row beside the tables of papers, on their data and protocol"
	@echo "make bench-ranking  retrieval, then a ranking model, then last rules: what each stage gives"
	@echo "make kubeflow   compile for Kubeflow, execute the compiled steps here, compare with the local run"
	@echo "make lock       write requirements.lock again from pyproject.toml"
	@echo "make bench-setup    the environment of the benchmarks' peers (downloads 3 GB, most of it PyTorch)"
	@echo "make bench-quality  recommendation quality beside peers, one table"

setup: $(READY)

# The lock file alone decides what is installed; hashes are checked. uv itself comes by pip into the environment.
$(READY): requirements.lock pyproject.toml | $(UV_READY)
	VIRTUAL_ENV=$(abspath $(VENV)) $(UV) pip install --quiet --no-deps --require-hashes --compile-bytecode -r requirements.lock
	VIRTUAL_ENV=$(abspath $(VENV)) $(UV) pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(UV_READY):
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

run: $(READY)
	@test "$(CONFIG)" != configs/movielens-100k.yaml || $(BIN)/twotower data movielens-100k
	@$(BIN)/twotower run --config $(CONFIG)

# Opened by hand it runs as well, in any Jupyter whose kernel is this environment.
notebook: run
	@mkdir -p runs/notebook
	@TWOTOWER_CONFIG=$(CONFIG) $(BIN)/jupyter execute docs/notebook/retrieval.ipynb --output=$(CURDIR)/runs/notebook/retrieval.ipynb

# An empty value lets Python keep what it compiled, whatever the caller's environment says: each of the many processes of
# a test run would compile the project again.
export PYTHONDONTWRITEBYTECODE :=

# Files side by side in two processes, as tests/conftest.py groups them: a pipeline run is busy on one core most of its time.
EVERYDAY := -n 2 --dist loadfile --no-loadscope-reorder $(addprefix --ignore tests/,faults portable kubeflow_runs)
test: lint
	$(BIN)/python -m pytest $(EVERYDAY)

# Each stage killed, then its disk full; interrupted runs, damaged artifacts, a metadata store on PostgreSQL that goes away:
# ten minutes and more of tests that only a change of the runner can break.
test-faults: $(READY)
	$(BIN)/python -m pytest tests/faults

test-fast: $(READY)
	$(BIN)/python -m pytest $(EVERYDAY) -m "not slow"

# Eight minutes, and a second environment of 3 GB: Beam's job service, and workers in what the worker image has.
test-portable: $(READY)
	$(BIN)/python -m pytest tests/portable $(ARGS)

# Six minutes: whole compiled runs, which `make test` has once, by processes that are forked.
test-kubeflow: $(READY)
	$(BIN)/python -m pytest tests/kubeflow_runs $(ARGS)

# Against any TF Serving: make conformance ARGS="--serving-address H:8500 --serving-rest-address H:8501 --model-name M"
conformance: $(READY)
	$(BIN)/python -m pytest tests/serving/conformance $(ARGS)

# Half of them over each interface, from the grammars of the test; ARGS="2000" for another half.
fuzz-serving: $(READY)
	HOSTILE_REQUESTS=$(or $(ARGS),10000) $(BIN)/python -m pytest -s -k whatever tests/serving/test_hostile_requests.py

# Every signature of the model that CONFIG's runs pushed; ARGS="VERSION_FOLDER --threads 4" for another. Needs a C++ compiler.
native: $(READY)
	@$(BIN)/python -m benchmarks.serving.native --config $(CONFIG) $(ARGS)

# On the model that CONFIG's runs pushed; ARGS="--soak 600 --swaps 20" for the soak.
bench-serving: $(READY)
	$(BIN)/python -m benchmarks.serving --config $(CONFIG) $(ARGS)

# By the native probe; ARGS="VERSION_FOLDER --histories 10,500" for others, ARGS="--catalogue 1000000" for a large one.
bench-requests: $(READY)
	@$(BIN)/python -m benchmarks.serving.requests --config $(CONFIG) $(ARGS)

# Rows per second and memory by the size of the catalogue; ARGS="--items 10000,100000" for less.
bench-training: $(READY)
	$(BIN)/python -m benchmarks.training $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: $(UV_READY)
	$(UV) pip compile pyproject.toml --extra dev --extra openlineage --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet --output-file requirements.lock

# The peers live apart: their pins and TFX's have no common solution. --no-config: pyproject.toml's overrides are TFX's.
BENCH := .venv-bench
BENCH_READY := $(BENCH)/.ready

bench-setup: $(BENCH_READY)

$(BENCH_READY): $(READY) requirements-bench.lock
	@test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH) || python3 -m venv $(BENCH)
	VIRTUAL_ENV=$(abspath $(BENCH)) $(UV) pip install --no-config --quiet --no-deps --require-hashes -r requirements-bench.lock
	@touch $@

# RecTools asks for implicit under another name, which would overwrite implicit's own files; nothing here compiles kernels
# with Triton.
bench-lock: $(UV_READY)
	printf "pm-implicit\ntriton\n" | $(UV) pip compile --no-config benchmarks/requirements.in --excludes /dev/stdin --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet --output-file requirements-bench.lock

bench-quality: $(READY) $(BENCH_READY)
	@test "$(CONFIG)" != configs/movielens-100k.yaml || $(BIN)/twotower data movielens-100k
	@$(BIN)/python -m benchmarks.quality --config $(CONFIG) $(ARGS)

# After bench-quality, whose runs it reads.
bench-ablations: $(READY)
	@$(BIN)/python -m benchmarks.quality.ablations --config $(CONFIG) $(ARGS)

# One run: what `model.exploration` costs known items and gains new ones.
bench-new-items: $(READY)
	@test "$(CONFIG)" != configs/movielens-100k.yaml || $(BIN)/twotower data movielens-100k
	@$(BIN)/python -m benchmarks.quality.new_items --config $(CONFIG) $(ARGS)

# The cluster's volume is this folder; the object store and the pods are folders of runs/kubeflow.
KUBEFLOW := runs/kubeflow
kubeflow: run
	@mkdir -p $(KUBEFLOW)
	@$(BIN)/twotower kubeflow compile --config $(CONFIG) --image twotower:local --pipeline-root minio://mlpipeline/v2/artifacts \
	  --set 'kubeflow.volumes=[{claim: twotower, path: "$(CURDIR)"}]' --set kubeflow.tables=null --set kubeflow.push=served/kubeflow \
	  --set kubeflow.checkpoints=$(KUBEFLOW)/checkpoints --output $(KUBEFLOW)/pipeline.yaml
	@$(BIN)/python -m kubeflow.conformance $(KUBEFLOW)/pipeline.yaml --folder $(KUBEFLOW)
	@$(BIN)/twotower batch --config $(CONFIG) --time 900000000 --output $(KUBEFLOW)/local.parquet
	@$(BIN)/twotower batch --config $(CONFIG) --time 900000000 --set output.push=served/kubeflow --output $(KUBEFLOW)/cluster.parquet
	@$(BIN)/python -m kubeflow.comparison $(KUBEFLOW)/local.parquet $(KUBEFLOW)/cluster.parquet

clean:
	rm -rf $(VENV) $(BENCH) build runs served results bench-results

# ARGS has the options, for instance ARGS="--sizes 5M --kinds gaussian"; --help lists them.
bench-index: $(READY) $(BENCH_READY)
	@$(BIN)/python -m benchmarks.index $(ARGS)

# Seconds and memory of every stage at 100k, 1M and 10M interactions; ARGS="--sizes 100k,1M" for less, --no-als without
# the peers' environment.
bench-scale: $(READY) $(if $(findstring --no-als,$(ARGS)),,$(BENCH_READY))
	@$(BIN)/python -m benchmarks.scale $(ARGS)

# On data that papers report on; ARGS="--data lastfm --seeds 1" for less, --from FOLDER where there is no network.
bench-published: $(READY)
	@$(BIN)/python -m benchmarks.published $(ARGS)

# One run of its own, in time; ARGS="--max-per-genre 3" for other last rules. Again it takes up the run that is there.
bench-ranking: $(READY)
	@test "$(CONFIG)" != configs/movielens-100k.yaml || $(BIN)/twotower data movielens-100k
	@$(BIN)/python -m benchmarks.ranking --config $(CONFIG) $(ARGS)
