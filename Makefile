# Everything runs in .venv; a target makes what it needs. `make demo` and `make test` work on a fresh machine.

PYTHON ?= python3
BIN := .venv/bin
# Without an NVIDIA GPU on Linux x86-64, ask for the CPU build by name: plain `torch` would pull gigabytes of CUDA.
TORCH ?= $(shell if [ "$$(uname -sm)" = "Linux x86_64" ] && ! command -v nvidia-smi >/dev/null; \
	then echo torch==2.13.0+cpu; else echo torch==2.13.0; fi)
PRESET ?= tiny
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test test-slow lint format docs size clean

demo: .venv/demo
	$(BIN)/owl2 demo --preset $(PRESET)

test: .venv/dev
	$(BIN)/pytest -n 2

test-slow: .venv/dev
	$(BIN)/pytest -n 2 -m "slow and not network and not oracle"

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/dev
	$(BIN)/mkdocs build --strict

size:
	@$(PYTHON) -m bench.size

clean:
	rm -rf .venv site

.venv/torch:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" || { echo; \
	echo "$(TORCH) was not found. Let pip find a CPU build of PyTorch (its CPU wheel index or a wheel folder:"; \
	echo "PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS), or choose another build: make TORCH=torch ..."; exit 1; }
	touch $@

.venv/demo .venv/dev: .venv/%: .venv/torch pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[$*]"
	touch $@
