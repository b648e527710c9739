# Every target works from a bare machine that has python3 (3.11 or newer, with venv), make and git.
VENV := .venv
BIN := $(VENV)/bin
# Two engines at a time share few cores best with a thread each that is bound to none.
ONE_THREAD := OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all compat lint format bench clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Create or update .venv (LITELVLM_DEVICE=cpu|cuda chooses the build of vLLM)
	@.setup/setup.sh

demo: setup ## Run the demonstration
	$(BIN)/litelvlm demo

test: SOME = -m "not slow"
test: ## Run the linters, the type checker and the tests
test-all: ## The same, and the slow tests that repeat others in more families and modes
test test-all: lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations=15 --ignore=tests/e2e
	HF_HUB_OFFLINE=1 $(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadfile --durations=40 tests/e2e $(SOME)

compat: setup ## Run plugin and end-to-end tests on the newest vLLM, on a CPU (VLLM=0.33.0 chooses)
	.setup/compat.sh $(VLLM)

lint: setup ## Run the linters and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## Format the code and apply safe lint fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## Measure throughput
	$(BIN)/python -m benchmarks.throughput

clean: ## Remove build products and caches (keeps .venv)
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
