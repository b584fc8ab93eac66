# Every target works in a fresh clone: it makes .venv and installs the locked packages first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-comfyui check lint types imports unit format lock bench-start bench-cache bench-engine bench-overhead bench-cost clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/bin/pip:
	@echo "making $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "comfyfn needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	@$(PYTHON) -m venv $(VENV)

# Nothing is installed that the lock file does not name: no build isolation, and no resolving, because pip would look at the
# newest release of what another package asks for with an extra (coverage[toml]) and refuse it for having no hash.
define install
	@echo "installing $(1)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(1)
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
endef

$(VENV)/.run: requirements.lock pyproject.toml | $(VENV)/bin/pip
	$(call install,requirements.lock)

$(VENV)/.dev: requirements-dev.lock pyproject.toml $(VENV)/.run
	$(call install,requirements-dev.lock)

# In an environment of its own: it pins what the project pins otherwise (boto3, packaging).
$(VENV)/.checkov: tests/deploy/checkov-requirements.lock | $(VENV)/bin/pip
	@echo "installing $<"
	@$(BIN)/python -m venv $(VENV)/checkov
	@$(VENV)/checkov/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: -r $<
	@touch $@

demo: $(VENV)/.run  ## Run the main job on real input: no GPU, no Docker, no cloud account
	@$(BIN)/python -m demo

test: lint types imports $(VENV)/.checkov  ## Run every test, with branch coverage of all processes
	@rm -f .coverage .coverage.*
	@$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --cov --cov-report=term-missing:skip-covered tests
	@rm -f .coverage.*  # of processes that tests killed

COMFYUI_TESTS := $(addprefix tests/,contract/test_engine_protocol.py contract/test_engine_files.py contract/test_engine_pixels.py \
	contract/test_engine_runs.py e2e/test_main_job.py e2e/test_failures.py e2e/test_serving.py e2e/test_weights_replaced.py \
	e2e/test_comfyui_client.py e2e/test_read_only_home.py)
test-comfyui: $(VENV)/.dev  ## The tests of engine and main job against the ComfyUI in COMFY_HOME
	@test -n "$(COMFY_HOME)" || { echo "set COMFY_HOME to a ComfyUI, and COMFY_PYTHON to the Python that runs it"; exit 2; }
	@$(BIN)/python -m pytest -q $(COMFYUI_TESTS)

check: lint types imports unit  ## The quick part: lint, types, imports, unit tests

lint: $(VENV)/.dev  ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## mypy, strict
	@$(BIN)/mypy

imports: $(VENV)/.dev  ## import-linter: the layers of docs/architecture.md
	@$(BIN)/lint-imports --no-logo

unit: $(VENV)/.dev  ## Unit tests
	@$(BIN)/python -m pytest -q tests/unit

format: $(VENV)/.dev  ## Format and fix what can be fixed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

COMPILE := $(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet
LOCK := $(COMPILE) pyproject.toml --extra embedded
lock: | $(VENV)/bin/pip  ## Update the lock files
	@$(BIN)/pip install --quiet uv
	@$(LOCK) --group lock -o requirements.lock
	@$(LOCK) --group dev -o requirements-dev.lock
	@echo checkov | $(COMPILE) --python-version 3.11 - -o tests/deploy/checkov-requirements.lock

bench-start: $(VENV)/.dev  ## Measure how long the port and /ready take beside the engine alone
	@$(BIN)/python -m bench.start

bench-cache: $(VENV)/.dev  ## Measure how fast models come, beside curl and boto3; writes docs/performance.md
	@$(BIN)/python -m bench.cache --write

bench-engine: $(VENV)/.dev  ## Measure the embedded engine, beside the ComfyUI in COMFY_HOME if set; writes docs/performance.md
	@$(BIN)/python -m bench.engine --write

bench-overhead: $(VENV)/.dev  ## Measure what the function adds, beside its engine alone or the ComfyUI in COMFY_HOME; writes docs/performance.md
	@$(BIN)/python -m bench.overhead --write

bench-cost: $(VENV)/.dev  ## Count the requests to S3 that a job costs; writes docs/performance.md
	@$(BIN)/python -m bench.cost --write

clean:  ## Remove what the targets made
	rm -rf $(VENV) demo-out comfyfn-data .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
