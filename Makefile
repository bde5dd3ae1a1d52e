# Two commands for a fresh machine: `make demo` and `make test`. Neither touches anything outside this folder but
# the cache of downloads (SAPWOOD_CACHE, else the user's cache folder).
#
#   make demo PYTHON=python3.12      another interpreter for .venv (3.11 or newer)
#   make test JOBS=1 ARGS='-k lora'  one process; more options for pytest

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 3
ARGS   ?=

# States sync what they write, and tests write thousands: where memory has room for their files, that costs nothing.
MEMORY := $(shell df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 4000000 { print "PYTEST_DEBUG_TEMPROOT=/dev/shm" }')

BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test bench lint format install install-dev clean

demo: $(VENV)/.installed
	$(BIN)/sapwood demo

# One thread a worker: with JOBS workers of one thread each the cores are full and no result depends on their number.
# Bytecode is written whatever the environment says: the processes that tests start would all compile the sources anew.
test: $(VENV)/.installed-dev
	$(MEMORY) PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

# Every claim on speed and memory, measured here; runs that are kept in docs/results/performance are not repeated.
bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/page.py $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "sapwood needs Python 3.11 or newer; this is $$($(PYTHON) --version 2>&1). Try: make demo PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# torch goes first and alone: a build that is there already (the CPU build, say) satisfies the pin and stays.
# The two stamps are newer than what they were made from as long as nothing needs to be installed again.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) torch
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) torch
	$(INSTALL) --editable ".[dev]"
	@touch $@ $(VENV)/.installed

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
