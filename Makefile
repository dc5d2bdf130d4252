# Everything a bare machine needs is made on the way: a virtual environment, with PyTorch for the GPU where there is one.
PYTHON ?= python3
BIN := .venv/bin
# Where PyTorch is looked for besides PyPI.
TORCH_INDEX ?= https://download.pytorch.org/whl/$(if $(shell command -v nvidia-smi),cu130,cpu)
VIDEO ?=
MODEL ?=
# Of the speed run: minutes on one H200, or on two CPU cores.
RECIPE ?= $(shell $(BIN)/python -c 'import torch; print("nano" if torch.cuda.is_available() else "micro")')

.PHONY: demo speedrun test lint types bench clean

demo: .venv/installed
	$(BIN)/infinitevl demo $(if $(VIDEO),"$(VIDEO)") $(if $(MODEL),--model "$(MODEL)")

speedrun: .venv/installed
	$(BIN)/infinitevl speedrun $(RECIPE)

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/pyright

bench: .venv/installed
	$(BIN)/python benchmarks/ops.py
	$(BIN)/infinitevl bench $(MODEL)

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-deps --retries 0 --constraint constraints.txt --extra-index-url $(TORCH_INDEX) torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,eval,serve,cluster,dev]'
	touch $@

clean:
	rm -rf .venv demo
