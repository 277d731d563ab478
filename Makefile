# Every target makes what it needs: a virtual environment in .venv, once, and again when pyproject.toml changes.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := tests/peers/node
NODE_STAMP := $(PEERS)/node_modules/.installed

# What the tests with real peers use: a program or file, and the Debian package that brings it. Nothing is fetched
# that is there, whoever brought it.
PEER_NEEDS := /usr/lib/postgresql/15/bin/postgres:postgresql-15 pgbouncer:pgbouncer node:nodejs npm:npm tmux:tmux \
	javac:default-jdk-headless /usr/share/java/postgresql.jar:libpostgresql-jdbc-java chromium:chromium ffmpeg:ffmpeg \
	/usr/sbin/sshd:openssh-server ssh:openssh-client dbclient:dropbear-bin rsync:rsync git:git zsh:zsh fish:fish \
	busybox:busybox vim:vim less:less containerd:containerd runc:runc kubectl:kubernetes-client curl:curl

.PHONY: help demo test check bench lint clean nightly peers

help:
	@echo 'make demo     psql and ssh through the gateway: allowed, masked, held, denied; verified and replayed'
	@echo 'make check    style, types, and the tests that need nothing else; under a minute'
	@echo 'make test     everything, with real servers and clients'
	@echo 'make nightly  long runs: millions of mutated messages, soaks'
	@echo 'make bench    side by side with direct connections, pgbouncer, ssh -J and nginx'
	@echo 'make lint     style and types only        make clean    remove what make made'

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'gatecast needs Python 3.11 or later: make PYTHON=python3.11 ...' >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo 'no venv module: apt-get install python3-venv' >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,demo]'
	@touch $@

$(NODE_STAMP): $(wildcard $(PEERS)/package.json)
	@if [ -f $(PEERS)/package.json ]; then \
		command -v npm >/dev/null || { echo 'npm is missing: apt-get install npm (or run make test as root)' >&2; exit 1; }; \
		cd $(PEERS) && npm install --silent --no-audit --no-fund --no-package-lock && mkdir -p node_modules && touch node_modules/.installed; \
	fi

peers:
	@missing=''; for need in $(PEER_NEEDS); do \
		name=$${need%%:*}; command -v "$$name" >/dev/null || test -e "$$name" || missing="$$missing $${need##*:}"; \
	done; \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends $$missing; \
		else \
			echo "the tests with real peers need:$$missing"; \
			echo "install them (Debian: sudo apt-get install$$missing) or run make check, which does without" >&2; exit 1; \
		fi; \
	fi

demo: $(STAMP)
	$(BIN)/gatecast demo

lint: $(STAMP)
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy

check: lint
	$(BIN)/python -m pytest -q -n auto -m 'not peer and not nightly'

# pytest's exit status 5, no test ran, is a failure like any other. One after the other: some tests measure CPU time, or
# see how fast a real client is; WORKERS=4 make test is for those who look at a failure twice.
test: peers lint $(NODE_STAMP)
	$(BIN)/python -m tests.peers.bigquery
	CI=$${CI:-true} $(BIN)/python -m pytest $${WORKERS:+-n $$WORKERS --dist loadfile --no-loadscope-reorder} -m 'not nightly'

nightly: peers $(STAMP) $(NODE_STAMP)
	CI=$${CI:-true} $(BIN)/python -m pytest -m nightly --timeout 7200

bench: peers $(STAMP)
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.bench_ssh
	$(BIN)/python -m benchmarks.bench_kubernetes
	$(BIN)/python -m benchmarks.bench_bigquery

clean:
	rm -rf $(VENV) $(PEERS)/node_modules build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
