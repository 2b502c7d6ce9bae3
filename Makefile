# `make help` lists the targets. Clusters, images and built tools live in
# $XDG_CACHE_HOME/ottoscaler (default ~/.cache/ottoscaler), outside the checkout.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/ottoscaler
export CARGO_TARGET_DIR ?= $(CACHE)/target
NAME ?= dev
KIND ?=
NAMESPACE ?= ottoscaler
SA ?= ottoscaler
RELEASE ?= ottoscaler
CHART ?= charts/ottoscaler
IMAGE ?=
VALUES ?=
HELM_FLAGS ?=
export NODES CONTEXT KWOK_CONFIG CONTAINER_LOG_MAX_SIZE CONTAINER_LOG_MAX_FILES MAX_PODS ONLY
cluster := deploy/local/cluster.sh

##@ Local cluster
.PHONY: cluster-up cluster-down cluster-env cluster-list cluster-kubeconfig tools
cluster-up: ## Start a cluster: KIND=node|fake|kind|existing NAME=dev (NODES=3 fake nodes; CONTEXT for existing)
	@$(cluster) up $(NAME) $(KIND)
cluster-down: ## Remove the cluster NAME without a trace
	@$(cluster) down $(NAME)
cluster-env: ## Print NAME's KUBECONFIG, RUN, AUDIT_LOG, JAEGER, OTLP, … as shell lines
	@$(cluster) env $(NAME)
cluster-list: ## List the clusters
	@$(cluster) list
cluster-kubeconfig: ## Write a kubeconfig that acts as ServiceAccount SA of NAMESPACE, print its path
	@$(cluster) kubeconfig-for $(NAME) $(NAMESPACE) $(SA)
tools: ## Build the pinned cluster programs into the cache (about 20 min, once)
	@deploy/local/build.sh

##@ Install
.PHONY: image load install uninstall
image: ## Build the release programs and the images made of them (tars in the cache)
	@deploy/local/image.sh
load: ## Import IMAGE=tar (default: what `make image` built) into NAME
	@$(cluster) load $(NAME) $(or $(IMAGE),$$(deploy/local/image.sh --paths))
install: ## Install the chart with the image of `make load` into NAMESPACE of NAME (VALUES=file, HELM_FLAGS=…)
	@deploy/local/build.sh helm
	@$(cluster) run $(NAME) helm upgrade --install $(RELEASE) $(CHART) --values <(echo 'image: {tag: dev}') \
	  --namespace $(NAMESPACE) --create-namespace $(if $(VALUES),--values $(VALUES)) --wait --timeout 2m $(HELM_FLAGS)
uninstall: ## Remove the chart from NAMESPACE of NAME
	@deploy/local/build.sh helm
	@$(cluster) run $(NAME) helm uninstall $(RELEASE) --namespace $(NAMESPACE) --wait --timeout 2m

##@ Show
.PHONY: demo demo-down
demo: ## The main job on a cluster of its own, the leader killed on the way
	@deploy/local/demo.sh
demo-down: ## Remove what demo left running
	@$(cluster) down demo

##@ Develop
.PHONY: build test tables lint bench
build: ## Build the release programs
	@cargo build --release --workspace --bins
test: ## Run the tests (ONLY=filter)
	@tests/run.sh
tables: ## Write the tables of README.md, the chart's schema and docs/constants.md that follow from the sources
	@UPDATE=1 cargo test --quiet --package ottoscaler --lib -- args::generated_tests
	@UPDATE=1 cargo test --quiet --test layout -- the_table_of_constants
lint: ## Check format, warnings, dependencies, file length, purity, scripts
	@tests/lint.sh
bench: ## Measure, one line per figure (ONLY=group)
	@tests/bench.sh

.PHONY: model soak mutants fuzz
model: ## Check the protocol's model exhaustively: three replicas (at most 10 min)
	@tests/long.sh model
soak: ## Attacks on leadership, 400 deaths in a ScaleUp, 10,000 changes of leader, 36,000 tasks, logs, in full (about 3 h)
	@tests/long.sh soak
mutants: ## Break the leadership code in every small way: a test must notice (about 30 min)
	@tests/mutants.sh
fuzz: ## Random scripts against the resume of logs (10 min)
	@tests/fuzz.sh

##@ Help
.PHONY: help
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z][a-z -]*:.*## / {printf "  %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
