# Every target sets up what it needs: on a fresh machine `make demo` and `make test` are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# torch by its exact version and alone, so that an index with a CPU build of it is used.
TORCH := $(shell grep '^torch==' constraints.txt)
CONFIG ?= examples/demo.yaml
export MONA_CONFIG := $(CONFIG)
# Packages are installed without bytecode and keep that of what is imported: a process that may not
# write it compiles ten thousand files anew, which takes it ten seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test quick coverage acceptance experiment bench ui lint clean

$(VENV)/run.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --no-compile $(TORCH)
	$(PIP) install --quiet --no-compile --constraint constraints.txt --editable '.[sae-lens]'
	touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(PIP) install --quiet --no-compile --constraint constraints.txt --editable '.[ui,dev]'
	touch $@

$(VENV)/ui.stamp: $(VENV)/run.stamp
	$(PIP) install --quiet --no-compile --constraint constraints.txt --editable '.[ui]'
	touch $@

demo: $(VENV)/run.stamp
	$(BIN)/mona run
	@$(BIN)/mona select summary
	@echo
	@echo 'Next: make ui, then http://127.0.0.1:3000; or, to see more of what was chosen,'
	@echo '$(BIN)/mona select show gsm8k/mona --config $(CONFIG)'

# Worksteal: a worker keeps to neighbouring tests, which share fixtures, until it has none left.
TESTS := $(BIN)/python -m pytest -n auto --dist worksteal

test: $(VENV)/dev.stamp
	$(TESTS) -m 'not acceptance and not experiment' --durations 25

quick: $(VENV)/dev.stamp
	$(TESTS) -m quick

# Of the quick tests: those that make models and stores run for minutes and touch most lines.
coverage: $(VENV)/dev.stamp
	$(TESTS) -m quick --cov --cov-report=term

acceptance: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m acceptance

experiment: $(VENV)/dev.stamp
	# Waiting threads spin: a tenth faster where nothing else runs.
	OMP_WAIT_POLICY=ACTIVE $(BIN)/python -m pytest -m experiment -s

bench: $(VENV)/dev.stamp
	$(BIN)/python -m bench.encoding
	$(BIN)/python -m bench.scoring

ui: $(VENV)/ui.stamp
	$(BIN)/mona ui

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) data .cache
