# `make` alone lists the targets. Each sets up .venv by itself where it is missing or older than what it is made from.
# What a target does with its variables: pipelines/targets.py, for all of them. No variable is part of a recipe here.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PINS := pyproject.toml constraints.txt

# Python's bytecode of what is installed, by all cores: pip takes one, and to leave it out costs every start where
# PYTHONDONTWRITEBYTECODE is set, as in images. Files that are no Python of this version do not matter.
COMPILE = @$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || :

BARE := help clean
TARGETS := shards plan status verify forget audit privacy query interchange samples pretrain distill plan-train recipe \
  curves evaluate evaluate-slides export embed peek fit-stain fuzz soak evaluate-tissue test test-fast test-long check bench docs $(BARE)

# The call reaches Python as it was typed, `$` and all: make's own quoted list, and not what make would expand it to.
GOALS := $(filter-out $(VENV)/.%,$(MAKECMDGOALS))
export CALL_GOALS := $(GOALS)
export CALL_GIVEN := $(MAKEOVERRIDES)
export CALL_FROM := $(value PWD)
$(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(eval unexport $(name))))

ifneq ($(words $(VENV)),1)
  $(error VENV is one path without blanks)
endif
ANY_PYTHON := $(or $(wildcard $(BIN)/python),$(PYTHON))
UNKNOWN := $(filter-out $(TARGETS),$(GOALS))
ifneq ($(UNKNOWN),)
  $(error $(or $(shell $(ANY_PYTHON) -m pipelines.make --no-target '$(subst ','\'',$(UNKNOWN))'),there is no target $(UNKNOWN)))
endif

.DEFAULT_GOAL := help
.PHONY: $(TARGETS)
.NOTPARALLEL:

shards plan status verify forget audit privacy query interchange samples: $(VENV)/.shards
pretrain distill plan-train recipe curves evaluate evaluate-slides export embed peek: $(VENV)/.train
fit-stain fuzz soak evaluate-tissue test test-fast test-long check: $(VENV)/.test
bench: $(VENV)/.bench
docs: $(VENV)/.docs
test test-fast test-long: check
ifeq ($(origin SHARDS),undefined)
pretrain distill: $(VENV)/.shards
endif

$(filter-out $(BARE),$(TARGETS)):
	@$(BIN)/python -m pipelines.make $@

help:
	@$(ANY_PYTHON) -m pipelines.make help

clean:
	@$(ANY_PYTHON) -m pipelines.make clean
	rm -rf .venv shards site sample_slides/*.svs sample_slides/*.tiff sample_slides/*.png

$(VENV)/.shards: $(PINS)
	@$(ANY_PYTHON) -m pipelines.make --check
	@$(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) for the slide stage"
	@$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable .
	$(COMPILE)
	@touch $@

$(VENV)/.train: $(PINS)
	@$(ANY_PYTHON) -m pipelines.make --check
	@$(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) for training: PyTorch is downloaded, which takes some minutes"
	@$(BIN)/python -m pip install --quiet --no-compile --no-deps --editable .
	@$(BIN)/python -m pipelines.make --requires train | $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --requirement /dev/stdin
	$(COMPILE)
	@touch $@

$(VENV)/.test: $(PINS)
	@$(ANY_PYTHON) -m pipelines.make --check
	@$(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) for the tests"
	@$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[train,dev,docs]'
	$(COMPILE)
	@touch $@ $(VENV)/.shards $(VENV)/.train $(VENV)/.docs

$(VENV)/.bench: $(VENV)/.test
	@$(ANY_PYTHON) -m pipelines.make --check
	@echo "setting up $(VENV) for the benchmarks"
	@$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[train,dev,docs,bench]'
	$(COMPILE)
	@touch $@

$(VENV)/.docs: $(PINS)
	@$(ANY_PYTHON) -m pipelines.make --check
	@$(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) for the documents"
	@$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[train,docs]'
	$(COMPILE)
	@touch $@ $(VENV)/.shards $(VENV)/.train
