# make demo: set everything up, train without and with the losses on the embedded dataset, and compare.
# make test: set everything up, run the test suite.
# All share one environment in .venv; it is made once and again only if its description changes.
# TORCH=cpu, given when it is made, takes PyTorch without CUDA: 2 GB instead of 6.5.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Name of one of PyTorch's own package indexes (cpu, cu126, ...); empty: PyPI, whose wheels bring CUDA.
TORCH ?=
TORCH_INDEX := $(if $(TORCH),--index-url https://download.pytorch.org/whl/$(TORCH))

.PHONY: install demo test lint coverage docs clean

install: $(READY)

$(READY): pyproject.toml setup.py tools/install_detectron2.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "make: $(PYTHON) is older than Python 3.10: name a newer one, e.g. make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "make: $(PYTHON) cannot create environments: install its venv package, e.g. apt install python3-venv" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "setuptools<81"
	$(BIN)/python -m pip install --quiet $(TORCH_INDEX) torch==2.14.1 torchvision==0.29.1
	$(BIN)/python -m pip install --quiet --editable ".[all]"
	$(BIN)/python tools/install_detectron2.py --from pypi
	@$(BIN)/python -c 'import cv2' || \
		{ echo "make: OpenCV lacks system libraries: apt install libgl1 libglib2.0-0" >&2; exit 1; }
	touch $(READY)

demo: $(READY)
	$(BIN)/python tools/demo.py

# The tests of a file stay together; a process takes up to 3 GB.
test: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

coverage: $(READY)
	$(BIN)/python -m pytest --cov

docs: $(READY)
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf $(VENV) build docs/_build *.egg-info
