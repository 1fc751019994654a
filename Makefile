# Every target works on a fresh machine with Python 3.11: `make demo`, `make test`.
PYTHON ?= python3
VENV   ?= .venv
ROOT   ?= demo-root
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed

.PHONY: venv demo paper test test-all check bench clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: venv
	ADBOOSTER_SUMMARY=1 $(BIN)/python -m jobs.nightly --config adbooster/tiny/demo.yaml --root-uri $(ROOT)

paper: venv
	$(BIN)/python -m tests.benchmarks.paper --work paper-root

test: venv
	$(BIN)/python -m pytest -m 'not slow'

test-all: venv
	$(BIN)/python -m pytest

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -m 'not slow'

bench: venv
	$(BIN)/python -m tests.benchmarks.generate --quick
	$(BIN)/python -m tests.benchmarks.prepare --quick
	$(BIN)/python -m tests.benchmarks.finetune --quick

clean:
	rm -rf $(VENV) demo-root paper-root
