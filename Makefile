# make help lists the targets. Each one installs what it needs into .venv first.
PYTHON ?= python3
BIN := .venv/bin
TASK ?= rte
ARGS ?=
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder
TRAIN := $(BIN)/python -m ltp.train

.DEFAULT_GOAL := help
.PHONY: help install demo demo-methods leaderboard figures report check test gpu serve train soft hard manual topk sweep reproduce budgets lint typecheck format docs clean

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14
	@echo
	@echo "TASK=mrpc chooses the task, ARGS='lr=1e-5 seed=1' adds to the command."

install: .venv/.installed  ## create .venv and install ltp with its pinned dependencies

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; choose another with make PYTHON=python3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install  ## learned and given thresholds and top-k at the same costs, on the embedded corpus, then the report
	$(TRAIN) -m task=demo stage=hard prune=threshold,manual,topk prune.target_flops=0.2,0.4
	$(BIN)/python -m ltp.report outputs/tiny/demo

demo-methods: install  ## every method on the embedded corpus at half of the FLOPs, then the report
	$(TRAIN) -m task=demo stage=hard prune=threshold,manual,topk,random,first,every,ltmp,power_bert,top,lat,transkimmer,adapler,tr_bert,tome,ltc prune.target_flops=0.5 $(ARGS)
	$(BIN)/python -m ltp.report outputs/tiny/demo

leaderboard: install  ## methods at equal cost: make leaderboard TASK=sst2 ARGS='budgets=[0.3,0.5] seeds=[0,1,2]'
	$(BIN)/python -m ltp.leaderboard task=$(TASK) $(ARGS)

report: install  ## tables and figures of all finished runs: make report ARGS=outputs/tiny
	$(BIN)/python -m ltp.report $(ARGS)

figures: install  ## the pictures of README and docs, from the demo's runs
	$(BIN)/python scripts/figures.py outputs/tiny/demo docs/images

check: lint typecheck  ## before a commit: ruff, mypy and the fast tests, in a minute or so
	$(PYTEST) -m "not slow"

gpu: install  ## on a machine with a GPU: its tests and benchmarks, one report in outputs/gpu
	$(BIN)/python scripts/gpu.py

test: install  ## every test, offline, on the CPU
	$(PYTEST)

serve: install  ## an HTTP server: make serve ARGS=restore=RUN
	$(BIN)/python -m ltp.serve $(ARGS)

train: install  ## the dense parent: make train TASK=mrpc
	$(TRAIN) stage=finetune task=$(TASK) $(ARGS)

soft: install  ## learn thresholds (trains the dense parent first where it is missing)
	$(TRAIN) prune=threshold stage=soft task=$(TASK) $(ARGS)

hard: install  ## fix learned thresholds and recover accuracy
	$(TRAIN) prune=threshold stage=hard task=$(TASK) $(ARGS)

manual: install  ## baseline: given thresholds
	$(TRAIN) prune=manual task=$(TASK) $(ARGS)

topk: install  ## baseline: top-k
	$(TRAIN) prune=topk task=$(TASK) $(ARGS)

sweep: install  ## the published grid of a task
	$(TRAIN) -m sweep=ltp task=$(TASK) $(ARGS)

reproduce: install  ## the paper's protocol: dense, three grids, one table; ARGS=--dry-run shows the jobs
	$(BIN)/python scripts/reproduce.py $(TASK) $(ARGS)

budgets: install  ## budgets beside fixed lambdas at the same cost: make budgets TASK=demo ARGS='seed=0,1'
	$(BIN)/python scripts/budgets.py $(TASK) $(ARGS)

lint: install  ## ruff, style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: install  ## mypy
	$(BIN)/mypy

format: install  ## let ruff rewrite the files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install  ## the documentation as a site, in site/; warnings fail
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/zensical build --strict --clean

clean:  ## remove caches and build products; outputs/ and .venv stay
	rm -rf build dist site .cache .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find ltp scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
