# Two commands on a fresh machine with Python 3.11 to 3.13, git and make:   make demo   and   make test
# Everything runs inside .venv; the second call of a target does not install again.
#
# PYTHON       interpreter that creates .venv                  make demo PYTHON=python3.12
# TORCH_INDEX  package index asked for torch besides PyPI      make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
#              (Linux without an NVIDIA GPU: saves several GB of CUDA libraries)
# PROCESSES    of the tests                                    make test PROCESSES=8

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint format bench drill clean

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
TORCH_INDEX ?=
PROCESSES ?= 2
VENV := .venv
PY := $(VENV)/bin/python
# The stamp's name carries the content of both files: a change of either installs again, a second call does not.
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | tr ' ' '-')
# One thread for each worker, CPU accelerator for DeepSpeed, nothing sent anywhere. All may be overridden from outside.
export OMP_NUM_THREADS ?= 1
export WANDB_MODE ?= offline
export RAY_USAGE_STATS_ENABLED ?= 0
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO ?= 0
export PYTHONUNBUFFERED ?= 1
# Ray started by a target gets a token that lives as long as the call; by default Ray would leave one in the home folder.
ifeq ($(RAY_ADDRESS)$(RAY_AUTH_MODE),)
export RAY_AUTH_MODE := token
export RAY_AUTH_TOKEN := $(shell od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
endif

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## create .venv and install the pinned packages

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13); \
	    sys.exit(0 if ok else "error: %s is Python %d.%d; Python 3.11 to 3.13 is needed, pass PYTHON=python3.11" % (sys.executable, *sys.version_info[:2]))'
	@test -x $(PY) || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing (a few minutes the first time)"
	@$(PY) -m pip install -q -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$$(grep '^torch==' constraints.txt)"
	@$(PY) -m pip install -q -c constraints.txt -e '.[dev]'
	@rm -f $(VENV)/.installed-*
	@touch $@

# ---- demo: every line is a command that you can type yourself; a second call continues or says that all is done
DEMO := runs/demo
DEMO_LIMIT ?= 120
DEMO_UNITS ?= 20
DEMO_STEPS ?= 240
DEMO_POLYMERS ?= 266
DEMO_DESIGN_STEPS ?= 150
STRUCTURES := $(DEMO)/polystyrene-100.sdf $(DEMO)/polylactide-50.sdf $(DEMO)/pmma-50.sdf

demo: $(DEMO)/report.html  ## bundled polymers > shards > pretraining > conformations > evaluation > Tg > proposals > runs/demo/report.html
	@echo "done: shards, checkpoint, metrics.jsonl, structures and evaluation lie in $(DEMO); open $(DEMO)/report.html; 'make clean' removes them"

$(DEMO)/shards/manifest.json: | $(STAMP)
	$(PY) -m data_shards.build --source textbook --limit $(DEMO_LIMIT) --num-units $(DEMO_UNITS) --conformers 2 --out $(@D)

$(DEMO)/.trained: $(DEMO)/shards/manifest.json
	$(PY) -m foundation.pretrain --recipe polyconfm_tiny --shards $(<D) --out $(DEMO)/model train.num_steps=$(DEMO_STEPS) train.checkpoint_every=100
	@touch $@

$(DEMO)/polystyrene-100.sdf: POLYMER := --psmiles '*CC(*)c1ccccc1' --num-units 100
$(DEMO)/polylactide-50.sdf: POLYMER := --psmiles '*OC(C)C(=O)*' --num-units 50 --tacticity isotactic
$(DEMO)/pmma-50.sdf: POLYMER := --psmiles '*CC(C)(*)C(=O)OC' --num-units 50 --tacticity syndiotactic

$(STRUCTURES): $(DEMO)/.trained
	$(PY) -m foundation.generate --checkpoint $(DEMO)/model $(POLYMER) --num 4 --seed 0 --out $@ --overwrite

$(DEMO)/eval/results.json: $(DEMO)/.trained
	$(PY) -m foundation.evaluate --checkpoint $(DEMO)/model --shards $(DEMO)/shards --split test --out $(@D) --overwrite

$(DEMO)/property/results.json: $(DEMO)/.trained
	$(PY) -m finetune.property --task tg --checkpoint $(DEMO)/model --out $(@D) --limit $(DEMO_POLYMERS) --members 2 --workers 0 --overwrite

$(DEMO)/designer/generator/config.json: $(DEMO)/property/results.json
	$(PY) -m finetune.design --task tg --checkpoint $(DEMO)/model --fitted $(DEMO)/property --out $(DEMO)/designer --limit $(DEMO_POLYMERS) --steps $(DEMO_DESIGN_STEPS) --workers 0

$(DEMO)/design/candidates.csv: $(DEMO)/designer/generator/config.json
	$(PY) -m finetune.propose --model $(DEMO)/designer --target tg=100 --num 10 --out $@ --overwrite

$(DEMO)/report.html: $(DEMO)/eval/results.json $(STRUCTURES) $(DEMO)/property/results.json $(DEMO)/design/candidates.csv
	$(PY) -m foundation.report $(DEMO) --overwrite

test: $(STAMP)  ## the default suite: CPU, no network; PROCESSES=2 at once (tests/conftest.py: which tests share one)
	$(PY) -m pytest -q -m 'not slow and not gpu' -n $(PROCESSES) --dist loadscope --no-loadscope-reorder

test-slow: $(STAMP)  ## the long tests
	$(PY) -m pytest -q -m 'slow'

lint: $(STAMP)  ## ruff, ruff format and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(STAMP)  ## rewrite the files the way lint wants them
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(STAMP)  ## run every benchmark once; results go to runs/bench
	$(PY) -m benchmarks.grow --out runs/bench

drill: $(STAMP)  ## twenty faults in one run: killed workers, nodes and drivers, a full disk, damaged files; table in runs/drill
	$(PY) -m benchmarks.drill --out runs/drill

clean:  ## remove caches and runs/demo; keeps .venv, shards/ and other runs
	rm -rf runs/demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
