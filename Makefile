# Everything a person types here. `make` alone lists it.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# -P keeps the current folder off the module path, so that no file of a user's shadows one of ours.
RUN := $(BIN)/python -P

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Ergon needs Python 3.11 or newer; pass PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing. On Debian or Ubuntu: apt-get install python3-venv"; exit 2; }
	@echo "Setting up $(VENV): downloads the packages of constraints.txt from your package index, torch $$(sed -n 's/^torch==//p' constraints.txt) among them (0.2 to 3 GB, by platform)."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[agent,train,service,dev]'
	@touch $@

setup: $(VENV)/.installed ## virtual environment with the pinned dependencies

demo: setup ## run the whole path on this machine and stop again
	@$(BIN)/ergon demo

up: setup ## start a local cluster and stay
	@$(BIN)/ergon up

test: setup ## the tests, but for the pages that `make pages` follows
	@$(BIN)/pytest -n 2 --dist loadfile -m 'not pages' tests

pages: setup ## follow the pages of the documentation, command by command
	@$(BIN)/pytest -n 2 --dist loadgroup -m pages tests/docs

fuzz: setup ## made-up requests against the API, as every kind of caller: SEED=1 EXAMPLES=50
	@ERGON_FUZZ_SEED=$(or $(SEED),1) ERGON_FUZZ_EXAMPLES=$(or $(EXAMPLES),50) $(BIN)/pytest -n 2 tests/service/test_fuzz.py

chaos: setup ## a real cluster under faults, then judged; as root: SECONDS=60 SEED=1
	@$(BIN)/python -m tests.chaos --seconds $(or $(SECONDS),60) --seed $(or $(SEED),1)

check-image: setup ## the steps of Dockerfile and docker-compose.yml without an engine; needs the package index
	@$(BIN)/python -m tests.deploy.check_image

reference: setup ## write docs/api.md and docs/commands.md anew
	@$(BIN)/python -m docs.reference

bench-packing: setup ## the public packing benchmark; ERGON_BENCH_DATA names the folder of its lists
	@$(BIN)/python -m bench.packing

lint: setup ## style, types, import contracts
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/basedpyright
	@$(BIN)/lint-imports

sim: setup ## 1,000 seeds of simulated faults in virtual time; SEEDS=n for more or fewer, SEED=n tells one in full
	@$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),1000))

state-machine: setup ## any order of events against the use cases, 300 examples; EXAMPLES=n
	@STATE_MACHINE_EXAMPLES=$(or $(EXAMPLES),300) $(BIN)/pytest -q -s tests/service/test_state_machine.py

mutate-guards: setup ## take each guard out of a copy of the tree once, and see a suite turn red
	@$(BIN)/python -m tests.guards

.PHONY: help setup demo up test fuzz chaos check-image reference bench-packing lint sim state-machine mutate-guards
