# Two commands: `make demo` and `make test`. Both build an environment first, with Python and nothing else.
# `make test` is the short suite, which takes minutes and needs no data; `make test-all` is everything.
PYTHON ?= python3
VENV ?= .venv
# Address of a package index with the PyTorch build wanted (CPU, CUDA …); empty: pip's default.
TORCH_INDEX ?=
BIN = $(VENV)/bin
# Marks an environment that can run the demo: a complete one serves too.
DEMO = $(if $(wildcard $(VENV)/.installed),$(VENV)/.installed,$(VENV)/.demo)
# Test processes side by side, and how the tests are shared out: in two long runs, of which the faster process takes the
# rest, so that neighbours, which share set-up, stay together. Every process computes in one thread.
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

.PHONY: demo test test-rest test-all lint types tables docs clean

# Only what the comparison needs, in an environment of its own unless there is one; one thread, because two programs on
# a busy machine that share its cores measure each other.
demo: $(DEMO)
	$(BIN)/synthgrad compare --threads 1 --out runs/demo
	@echo "open runs/demo/report.html"

test: $(VENV)/.installed
	$(PYTEST) -m "not slow and not documents"

# What the short suite without data has left out.
test-rest: $(VENV)/.installed
	$(PYTEST) -m "slow or documents or data"

test-all: $(VENV)/.installed
	$(PYTEST)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/basedpyright --pythonpath $(BIN)/python

tables: $(VENV)/.installed
	$(BIN)/python scripts/fill_tables.py

# The site, in site/. Strict: a link, anchor or notebook that fails ends it.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/mkdocs build --strict

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep ^torch== constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing PyTorch and what the comparison needs; this downloads some hundred megabytes"
	$(BIN)/python -m pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep ^torch== constraints.txt)"
	$(BIN)/python -m pip install -c constraints.txt -e ".[lab]"
	touch $@

clean:
	rm -rf $(VENV) dist build runs site
