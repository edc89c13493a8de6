# Everything here works on a fresh clone: the environment is made when it is missing.
PYTHON ?= python3
# Or else every process that a test starts compiles all modules anew.
unexport PYTHONDONTWRITEBYTECODE
BIN := .venv/bin

.PHONY: demo test slow attack lint docs site dist bench exactness conformance architectures folders clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade "pip>=25.1"
	$(BIN)/python -m pip install -q -c constraints.txt --group dev -e .
	touch $@

.venv/frameworks: .venv/ready
	$(BIN)/python -m pip install -q -c constraints.txt --group frameworks
	touch $@

# Of its own: what the demo runs with and no more. Compiling all of torch takes longer than the rest.
.venv-demo/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python -m pip install -q --no-compile -c constraints.txt scikit-learn -e .
	touch $@

demo: .venv-demo/ready
	.venv-demo/bin/python examples/digits_new_class/demo.py demo

test: .venv/ready
	$(BIN)/python -m pytest -n 2

slow: .venv/frameworks
	$(BIN)/python -m pytest -n 2 -m "slow and not attack"

# SURGEON_ATTACK_SEED=1 tries others, SURGEON_ATTACK_SECONDS=60 fewer.
attack: .venv/ready
	$(BIN)/python -m pytest -n 2 -m attack tests/attack

lint: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .venv/ready
	$(BIN)/python -m tests.docs

# Pages that link to nothing, or from nowhere, are errors.
.venv/site: .venv/ready
	$(BIN)/python -m pip install -q -c constraints.txt --group site
	touch $@

site: .venv/site
	$(BIN)/python -m tests.site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build -q --strict -f .site/mkdocs.yml -d ../site

# What is published: an sdist and a wheel in dist/, checked.
dist: .venv/ready
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*

bench: .venv/ready
	$(BIN)/python -m benchmarks

exactness: .venv/ready
	$(BIN)/python -m tests.training.exactness

conformance: .venv/ready
	$(BIN)/python -m tests.conformance

architectures: .venv/frameworks
	nice $(BIN)/python -m tests.architectures

folders: .venv/frameworks
	$(BIN)/python -m tests.folders

clean:
	rm -rf .venv .venv-demo .bench demo site
