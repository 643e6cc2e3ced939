# One command each. `make setup` needs Python 3.10 or newer as python3; everything else runs in .venv, which it makes.

BASE_PYTHON ?= python3
PYTHON := .venv/bin/python
BENCHES := $(basename $(notdir $(filter-out bench/_%,$(wildcard bench/*.py))))

.PHONY: help setup link demo test test-hosts check bench

help:
	@echo "make setup   virtual environment, real ComfyUI $$(sed -n 's/^HOST_VERSION = "\(.*\)"/\1/p' tools/setup.py), this pack linked into it"
	@echo "make demo    style pictures from the shipped references on a real ComfyUI; says where they are"
	@echo "make check   lint, types and the tests that need no server"
	@echo "make test    lint, types and all tests, with the real server and a real browser"
	@echo "make bench   every benchmark"
	@echo "make test-hosts  the server tests on the oldest ComfyUI, the browser tests on a newer front end (half an hour)"
	@echo "make evidence the tests of the study and of the paper's Table 1"
	@echo "make link    link this pack into the custom_nodes of COMFYUI_PATH"

setup:
	@$(BASE_PYTHON) -m tools.setup

link:
	@$(BASE_PYTHON) -m tools.setup --link

# With COMFYUI_PATH the demo runs in that installation and needs no setup of ours.
demo: $(if $(COMFYUI_PATH),,setup)
	@$(BASE_PYTHON) -m tools.demo $(ARGS)

lint: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pyright
.PHONY: lint

check: lint
	$(PYTHON) -m pytest tests -q -m "not server and not slow and not evidence"

test: lint
	@$(BASE_PYTHON) -m tools.setup --browser
	$(PYTHON) -m pytest tests -q -m "not evidence"

# the tests of what measures: the study, and the paper's Table 1
evidence: setup
	$(PYTHON) -m pytest tests -q -m evidence
.PHONY: evidence

test-hosts: setup
	@$(BASE_PYTHON) -m tools.setup --browser
	$(PYTHON) -m tools.hosts $(ARGS)

bench: setup
	@set -e; for name in $(BENCHES); do echo "== bench.$$name"; $(PYTHON) -m bench.$$name --json; done
