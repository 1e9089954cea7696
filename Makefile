# Everything here sets itself up: a fresh machine needs Python >= 3.11 with venv, and make.
#   make test PYTHON=python3.12     another interpreter (rebuilds .venv when it differs)
#   make test ARGS="-k spool -x"    more arguments for pytest
SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.ready
CANDIDATES := $(or $(PYTHON),python3.14 python3.13 python3.12 python3.11 python3)
USABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
# As many test processes as the machine has processors, up to four: most tests wait for a database or a process.
PARALLEL := -n logical --maxprocesses 4
VERSION := import platform, sys; print(platform.python_version(), sys.implementation.cache_tag)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export UV_PYTHON_DOWNLOADS := never
export UV_SYSTEM_CERTS := 1
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV

# The stamp cannot see that another interpreter is asked for, or that the old one is gone.
ifneq ($(wildcard $(STAMP)),)
  ifneq ($(shell $(PY) -c '$(VERSION)' 2>/dev/null),$(shell $(or $(PYTHON),$(PY)) -c '$(VERSION)' 2>/dev/null || echo unusable))
    OUTDATED := outdated
  endif
endif

.PHONY: help setup format check test test-slow demo app bench wheel clean outdated

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 - \2/p' Makefile | awk -F ' - ' '{ printf "%-18s %s\n", $$1, $$2 }'

setup: $(STAMP)  ## create .venv with the package, its extras and the development tools
	@echo "Ready: $(VENV) with $$($(PY) --version)"

$(STAMP): pyproject.toml $(OUTDATED)
	@python=; for candidate in $(CANDIDATES); do \
		if "$$candidate" -c '$(USABLE)' >/dev/null 2>&1; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "No usable Python >= 3.11 with the venv module among: $(CANDIDATES). Install one (Debian and Ubuntu: python3-venv) or name it: make PYTHON=/path/to/python3.12" >&2; \
		exit 1; \
	fi; \
	wanted=$$("$$python" -c '$(VERSION)'); \
	if [ -z "$(PYTHON)" ] && $(PY) -c '$(USABLE)' >/dev/null 2>&1; then wanted=$$($(PY) -c '$(VERSION)'); fi; \
	echo "Setting up $(VENV) with Python $${wanted%% *}, once ..."; \
	set -e; rm -f $(STAMP); \
	if [ "$$($(PY) -c '$(VERSION)' 2>/dev/null)" != "$$wanted" ] || ! $(PY) -m pip --version >/dev/null 2>&1; then \
		"$$python" -m venv --clear $(VENV); \
	fi; \
	$(PY) -m pip install -qq --upgrade pip; \
	$(PY) -m pip install -qq --upgrade uv 2>/dev/null || true; \
	$(VENV)/bin/uv pip install --quiet --compile-bytecode --python $(PY) --editable '.[all]' --group dev 2>$(VENV)/uv.log \
		|| $(PY) -m pip install -qq --editable '.[all]' --group dev; \
	touch $(STAMP)

format: $(STAMP)  ## rewrite the sources in the project's format
	@echo "Formatting with ruff ..."
	@$(PY) -m ruff check --quiet --fix-only .
	@$(PY) -m ruff format .

check: $(STAMP)  ## lint, formatting, types and the subjects of commits, as CI checks them
	@echo "Checking with ruff, mypy and pyright ..."
	@.ci/commit-subjects
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -m pyright

test: $(STAMP)  ## run the tests (SQLite always, PostgreSQL and MariaDB where they answer)
	@echo "Running the tests ..."
	@$(PY) -m pytest -q $(PARALLEL) $(ARGS)

test-slow: $(STAMP)  ## run the long chaos tests
	@echo "Running the long chaos tests; this takes many minutes ..."
	@$(PY) -m pytest -q -m slow --timeout=1800 -o faulthandler_timeout=1900 $(ARGS)

demo: $(STAMP)  ## watch a multi-agent run live, without a key or a network
	@$(PY) examples/demo.py $(ARGS)

app: $(STAMP)  ## run the example web service; with APP_DATABASE=... APP_BROKER=... and real workers
	@cd examples && ../$(PY) -m fastapi_app $(ARGS)

bench: $(STAMP)  ## measure, and print a table with ratios
	@echo "Running the benchmarks; this takes about twenty minutes, or a few with ARGS=--quick ..."
	@$(PY) -m benchmarks $(ARGS)

wheel: $(STAMP)  ## build the sdist and the wheel into dist/
	@echo "Building into dist/ ..."
	@$(PY) -m hatchling build -d dist

clean:  ## remove what the targets above made
	@echo "Removing virtual environments, caches and builds ..."
	@rm -rf $(VENV) .venv-ci dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
