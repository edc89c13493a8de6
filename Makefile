# Everything here works on a fresh clone: the environment is made when it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow attack lint docs bench exactness conformance architectures folders clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade "pip>=25.1"
	$(BIN)/python -m pip install -q -c constraints.txt --group dev -e .
	touch $@

.venv/frameworks: .venv/ready
	$(BIN)/python -m pip install -q -c constraints.txt --group frameworks
	touch $@

demo: .venv/ready
	$(BIN)/python examples/digits_new_class/demo.py demo

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
	rm -rf .venv .bench demo
