# Every target works on a fresh machine with Python 3.11: `make demo`, `make test`.
PYTHON ?= python3
VENV   ?= .venv
ROOT   ?= demo-root
FUZZ_SECONDS ?= 300
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed
TEST    = -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: venv demo paper test test-all check bench fuzz docs clean

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
	$(BIN)/python -m pytest -m 'not slow' $(TEST)

test-all: venv
	$(BIN)/python -m pytest -m 'not slow' $(TEST)
	$(BIN)/python -m pytest -m slow

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -m 'not slow' $(TEST)

bench: venv
	$(BIN)/python -m tests.benchmarks.generate --quick
	$(BIN)/python -m tests.benchmarks.prepare --quick
	$(BIN)/python -m tests.benchmarks.finetune --quick
	$(BIN)/python -m tests.benchmarks.deliver --quick

fuzz: venv
	ADBOOSTER_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest tests/fuzz

docs: venv
	$(BIN)/python -m adbooster.cli.reference docs

clean:
	rm -rf $(VENV) demo-root paper-root
