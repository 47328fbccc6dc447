# make demo, make test: both work on a fresh machine and install what is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test quick lint types install runtimes clean

demo: install
	$(BIN)/kdc compress models/digits/recipe.yaml --out runs/digits

test: lint types runtimes
	$(BIN)/python -m pytest

quick: install
	$(BIN)/python -m pytest -m "not slow"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

install: $(INSTALLED)

# torch 2.13.0 by name takes a build for the processor alone; a range may take several GB for a GPU.
$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $(INSTALLED)

# The runtimes that a machine without their hardware can have too; tests of one that is absent are skipped with the reason.
# litert is left to who wants it: 1.1 GB, and its packages hold typing_extensions below 4.13 and with it pydantic below 2.12.
RUNTIMES := openvino ncnn mnn executorch coreml tvm tensorrt-rtx

runtimes: install
	for name in $(RUNTIMES); do \
		test -e $(VENV)/.$$name || { $(BIN)/pip install --quiet --editable ".[$$name]" && touch $(VENV)/.$$name; } \
			|| echo "$$name is not installed: its tests are skipped"; \
	done

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
