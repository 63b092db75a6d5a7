# Everything happens in .venv, which the first target that needs it makes.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Tests and commands start hundreds of processes: each would compile the package again where this is set.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-all test-reference looks bench bench-quick bench-lightly lint audit format check reference docs docker clean

demo: $(VENV)/.ready
	$(BIN)/semisup run digits/quickstart

test: $(VENV)/.ready
	$(BIN)/pytest -n auto --dist worksteal

test-all: $(VENV)/.ready
	$(BIN)/pytest -n auto --dist worksteal -m "not reference"

# The site and the reports in a browser, with the contrast of their texts, and the site's links.
looks: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check 'mkdocs-material>=9.5'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps axe-playwright-python
	$(BIN)/pytest tests/test_looks.py -m ""

# The losses next to those of other packages, which need no more than tqdm for what is used of them.
test-reference: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps pytorch-metric-learning lightly tqdm
	$(BIN)/pytest -m reference tests/reference

# What steps cost, next to the committed ratios. A busy machine shows other ones: look at the load below the table.
bench-quick: $(VENV)/.ready
	$(BIN)/python benchmarks/throughput.py --quick

# The same at length, into benchmarks/results, and from there into the README.
bench: $(VENV)/.ready
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/throughput.py --compile
	$(BIN)/python benchmarks/kept_memory.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/publish.py

bench-lightly: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps lightly tqdm lightning-utilities
	$(BIN)/python benchmarks/against_lightly.py

# The image, which runs the demo and classifies a picture without a network.
DOCKER_RUN := docker run --rm --network none --user "$$(id -u):$$(id -g)" -v "$(CURDIR)/runs:/work/runs" semisup
docker:
	docker build -t semisup .
	mkdir -p runs
	$(DOCKER_RUN)
	$(DOCKER_RUN) predict runs/digits-quickstart/student runs/digits-quickstart/student/confusion.png

lint: $(VENV)/.ready
	$(BIN)/codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml semisup

# The schemas that editors read, and the reference pages of docs/, from the models themselves.
reference: $(VENV)/.ready
	$(BIN)/python benchmarks/reference.py

# Known faults of what is installed, by the list of the package index.
audit: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/pip-audit

# The pages of docs/ as a site, which needs no network to be read.
docs: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check 'mkdocs-material>=9.5'
	$(BIN)/mkdocs build --strict

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint test

# Debian splits venv from python3; as root it is installed, otherwise python3's own message says what to do.
$(VENV)/.ready: setup.py pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV) || { test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -qq -y python3-venv && $(PYTHON) -m venv $(VENV); }
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
