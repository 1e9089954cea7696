# Everything here sets itself up: a fresh machine needs Python >= 3.11 with venv, and make.
#   make test PYTHON=python3.12     another interpreter (rebuilds .venv when it differs)
#   make test ARGS="-k spool -x"    more arguments for pytest
SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.ready
# `make demo` downloads only what the demo imports.
DEMO_VENV := .venv-demo
DEMO_WEB := openai-agents,web
CANDIDATES := python3.14 python3.13 python3.12 python3.11 python3
USABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
# Three test processes, also on two processors: most tests wait for a database or a process.
PARALLEL := -n 3
VERSION := import platform, sys; print(platform.python_version(), sys.implementation.cache_tag)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export UV_PYTHON_DOWNLOADS := never
export UV_SYSTEM_CERTS := 1
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV

# The stamp of an environment cannot see that another interpreter is asked for, or that its own is gone.
outdated = $(if $(wildcard $(1)/.ready),$(shell \
	[ "$$($(1)/bin/python -c '$(VERSION)' 2>/dev/null)" = \
	"$$($(or $(PYTHON),$(1)/bin/python) -c '$(VERSION)' 2>/dev/null || echo unusable)" ] || echo outdated))

# $(call environment,FOLDER,REQUIREMENTS): an environment keeps its Python unless PYTHON names another one.
# An editable install needs no built dashboard, and no Node for it.
define environment
@export HATCH_BUILD_NO_HOOKS=true; for candidate in $(or $(PYTHON),$(1)/bin/python $(CANDIDATES)); do \
	if "$$candidate" -c '$(USABLE)' >/dev/null 2>&1; then exec "$$candidate" .ci/environment.py $(1) $(2); fi; \
done; \
echo "No usable Python >= 3.11 with the venv module among: $(or $(PYTHON),$(CANDIDATES)). Install one (Debian and Ubuntu: python3-venv) or name it: make PYTHON=/path/to/python3.12" >&2; \
exit 1
endef

.PHONY: help setup ui format check test test-slow test-receivers receivers demo app dashboard bench wheel clean outdated

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 - \2/p' Makefile | awk -F ' - ' '{ printf "%-18s %s\n", $$1, $$2 }'

setup: $(STAMP) ui  ## create .venv with the package, its extras and the development tools
	@echo "Ready: $(VENV) with $$($(PY) --version)"

$(STAMP): pyproject.toml $(call outdated,$(VENV))
	$(call environment,$(VENV),--editable '.[all]' --group dev)

ui: $(STAMP)  ## build the dashboard's files, if its sources have changed
	@$(PY) .ci/dashboard.py build

format: $(STAMP)  ## rewrite the sources in the project's format
	@echo "Formatting with ruff ..."
	@$(PY) -m ruff check --quiet --fix-only .
	@$(PY) -m ruff format .

check: $(STAMP)  ## lint, formatting, types and the subjects of commits, as CI checks them
	@echo "Checking with ruff, mypy, pyright and tsc ..."
	@.ci/commit-subjects
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -m pyright
	@$(PY) .ci/dashboard.py check

test: $(STAMP) ui  ## run the tests (SQLite always, PostgreSQL and MariaDB where they answer)
	@echo "Running the tests ..."
	@$(PY) -m pytest -q $(PARALLEL) $(ARGS)

test-slow: $(STAMP) ui  ## run the long chaos tests
	@echo "Running the long chaos tests; this takes many minutes ..."
	@$(PY) -m pytest -q -m slow --timeout=1800 -o faulthandler_timeout=1900 $(ARGS)

receivers: $(STAMP)  ## install Arize Phoenix and MLflow into environments of their own (1.1 GB)
	@for name in phoenix:arize-phoenix mlflow:mlflow; do \
		folder="$${AGENTEXEC_TEST_RECEIVERS:-$$HOME/.cache/agentexec-otel/receivers}/$${name%%:*}"; \
		[ -x "$$folder/bin/$${name%%:*}" ] || { \
			$(PY) -m uv venv --quiet --python $(PY) "$$folder" && \
			$(PY) -m uv pip install --quiet --python "$$folder/bin/python" "$${name##*:}"; } || exit 1; \
	done

test-receivers: receivers  ## check what tracing backends show of our spans
	@echo "Running pytest with real tracing backends ..."
	@$(PY) -m pytest -q -m receivers $(ARGS)

demo: $(DEMO_VENV)/$(if $(findstring --dashboard,$(ARGS)),.web,.ready)  ## watch a multi-agent run live, without a key; ARGS=--dashboard serves the dashboard, too
	@$(DEMO_VENV)/bin/python examples/demo.py $(ARGS)

$(DEMO_VENV)/.ready: pyproject.toml $(call outdated,$(DEMO_VENV))
	$(call environment,$(DEMO_VENV),--editable '.[openai-agents]' --group demo)

$(DEMO_VENV)/.web: pyproject.toml $(call outdated,$(DEMO_VENV))
	$(call environment,$(DEMO_VENV),--editable '.[$(DEMO_WEB)]' --group demo-web)
	@$(DEMO_VENV)/bin/python .ci/dashboard.py build
	@touch $@

dashboard: $(STAMP) ui  ## watch hundreds of activities live in the dashboard
	@$(PY) examples/live_activities.py --dashboard $(ARGS)

app: $(STAMP) ui  ## run the example web service; with APP_DATABASE=... APP_BROKER=... and real workers
	@cd examples && ../$(PY) -m fastapi_app $(ARGS)

bench: $(STAMP)  ## measure, and print a table with ratios
	@echo "Running the benchmarks; this takes about twenty minutes, or a few with ARGS=--quick ..."
	@$(PY) -m benchmarks $(ARGS)

wheel: $(STAMP) ui  ## build the sdist and the wheel into dist/
	@echo "Building into dist/ ..."
	@$(PY) -m hatchling build -d dist

clean:  ## remove what the targets above made
	@echo "Removing virtual environments, caches and builds ..."
	@rm -rf agentexec_otel/web/static agentexec_otel/web/ui/node_modules $(VENV) $(VENV).log $(DEMO_VENV) $(DEMO_VENV).log .venv-ci dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
