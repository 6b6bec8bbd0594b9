# make demo, make test: each makes the virtual environment if there is none, installs, and runs.
# PYTHON: the interpreter to make it with (3.11 or later). PIP_ARGS: more arguments for pip, such as the
# index of another build of torch (see the README).
PYTHON ?= python3
PIP_ARGS ?=
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types tests bench audit proto clean
.DEFAULT_GOAL := test

demo: $(VENV)/installed
	$(BIN)/fcn demo

test: lint types tests

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

tests: $(VENV)/installed $(VENV)/crf
	$(BIN)/python -m pytest

bench: $(VENV)/installed
	$(BIN)/python benchmarks/conversion.py

# docs/audit.md, which a test holds against what the command says.
audit: $(VENV)/installed
	$(BIN)/fcn audit --markdown docs/audit.md --force

# caffe_pb2.py and caffe_pb2.pyi from caffe.proto; a test compares.
proto: $(VENV)/installed
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. caffe_weights/caffe.proto

$(VENV)/installed: setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; pass PYTHON=python3.12, or whatever there is"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about two minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[test]'
	@touch $@

# The extra [crf] is built from source; where that fails its tests are skipped.
$(VENV)/crf: $(VENV)/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[crf]' || \
	  echo "no pydensecrf2, which takes a C++ compiler: the tests of the CRF are skipped"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-output
