# Everything a person types often. `make help` lists it.
#
# PYTHON  interpreter that the virtual environment is made with (3.11 or newer)
# CKPT    the model of `make try`, a last.pth of stage 2 or a folder that util.export made
# VENV    where the environment lives; empty (VENV=) uses PYTHON as it is, with the packages it has
PYTHON ?= python3
VENV ?= .venv
DEMO ?=
TESTS ?=
CKPT ?=

ifeq ($(strip $(VENV)),)
RUN := $(PYTHON)
READY :=
READY_DEV :=
else
RUN := $(VENV)/bin/python
READY := $(VENV)/.installed
READY_DEV := $(VENV)/.installed-dev
endif

.PHONY: help demo try test test-large test-slurm lint clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo "  PYTHON=python3.12 chooses the interpreter; VENV= (empty) uses it as it is, without installing anything"

demo: $(READY)  ## both stages on real images, two losses, a table and pictures (about 6 minutes on two cores)
	$(RUN) -m submit.demo $(DEMO)

try: $(READY)  ## a page in the browser to try a model (CKPT=runs/bft/last.pth; needs gradio, which it says how to install)
	$(RUN) -m util.try_page $(if $(CKPT),"$(CKPT)")

test: $(READY_DEV)  ## the tests (TESTS="tests/test_lr.py -k cosine" for some of them)
	$(RUN) -m pytest $(TESTS)

test-large: $(READY_DEV)  ## the tests of official-size lists: minutes, half a million small files in TMPDIR
	$(RUN) -m pytest -m large -s $(TESTS)

# The state folder's path has to be short, and the cluster stops whatever the tests say.
test-slurm: $(READY_DEV)  ## the tests on a real SLURM of this machine, which is installed (Debian, root) and started for them
	lab=$$(mktemp -d /tmp/slurm-XXXXXX) && export SLURM_LAB=$$lab SLURM_NODE_PREFIX=127.0.0. && \
	trap "tests/slurm/stop.sh; rm -rf $$lab" EXIT && trap "exit 130" INT TERM && tests/slurm/start.sh && \
	. $$lab/env.sh && $(RUN) -m pytest -m slurm tests/slurm $(TESTS)

lint: $(READY_DEV)  ## ruff
	$(RUN) -m ruff check .

clean:  ## the environment and caches; runs/ stays
	rm -rf $(or $(VENV),.venv) .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

ifneq ($(strip $(VENV)),)
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python %d.%d is too old, 3.11 or newer is needed: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

# A second call finds these files newer than the requirements and installs nothing.
$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
endif
