# Each target creates the virtual environment .venv from requirements.txt if it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OLD := $(VENV)/old-requests/.ready
PACIFICA := $(VENV)/pacifica-cartd/.ready
MINUTES := 60

# With it, each start of the service, of which the tests make hundreds, would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo run picture test coverage fuzz soak api-check bench check docs audit clean

help:
	@echo "make demo   demonstrate cartd: start an archive, post a cart, download it; prints the commands"
	@echo "make run    run cartd and an archive until Ctrl-C; prints example commands"
	@echo "make test   run the whole test suite"
	@echo "make coverage  run the test suite, and report which lines and branches of cartd it runs"
	@echo "make fuzz   fuzz all parsers of foreign text for MINUTES=10, and report findings"
	@echo "make soak   kill cartd under load for MINUTES=60, and write a report"
	@echo "make api-check  test cartd with requests from its OpenAPI description for MINUTES=60"
	@echo "make bench  compare the performance of cartd with other tools (bench/README.md)"
	@echo "make check  formatting, lint, types, import layers and known vulnerabilities"
	@echo "make docs   write the pages and tables in docs/ that are generated from the code"
	@echo "make picture  write docs/pictures/page.png, the picture of the page in README"
	@echo "make audit  check requirements.txt for known vulnerabilities"
	@echo "make clean  remove what the other targets created"

$(READY): requirements.txt setup.py client/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("cartd needs Python 3.11 or newer: make PYTHON=python3.12" \
		if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--config-settings editable_mode=compat --editable . --editable client
	touch $@

$(OLD): tests/support/old-requests.txt $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target $(@D) -r tests/support/old-requests.txt
	touch $@

$(PACIFICA): tests/support/pacifica-cartd.txt $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target $(@D) -r tests/support/pacifica-cartd.txt
	touch $@

demo: $(READY)
	@demo/tools curl tar
	@BIN=$(BIN) demo/demo

run: $(READY)
	@demo/tools curl tar
	@BIN=$(BIN) demo/demo --keep

define TEST_TOOLS
@demo/tools busybox unar php perl pax cpio 7zz
@demo/tools curl tar bsdtar wget aria2c fail2ban-regex pgbouncer
@demo/tools mkfs.ext4 e2fsck mkfs.btrfs btrfs mkntfs mount
@demo/tools nginx squid varnishd haproxy prometheus promtool
@demo/tools lftp wget2 jq systemd-analyze tmux
@demo/tools chromium chromedriver
endef

test: $(READY) $(OLD) $(PACIFICA)
	$(TEST_TOOLS)
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

coverage: $(READY) $(OLD) $(PACIFICA)
	$(TEST_TOOLS)
	rm -rf .coverage htmlcov .screenshots
	status=0; $(BIN)/coverage run -m pytest -n auto --dist worksteal $(ARGS) || status=$$?; \
	$(BIN)/coverage combine --quiet && $(BIN)/coverage html && $(BIN)/coverage report && exit $$status

fuzz: MINUTES := 10
fuzz: $(READY)
	$(BIN)/python -m tests.fuzz.campaign --minutes $(MINUTES) $(ARGS)

picture: $(READY)
	@demo/tools chromium chromedriver
	$(BIN)/python -m tests.support.page_picture

docs: $(READY)
	$(BIN)/python -m tests.support.client_page
	$(BIN)/python -m tests.support.configuration_page
	$(BIN)/python -m tests.support.problems_page
	$(BIN)/python -m tests.support.metrics_table

soak: $(READY)
	$(BIN)/python -m tests.crash.soak --minutes $(MINUTES) $(if $(SEED),--seed "$(SEED)")

api-check: $(READY)
	$(BIN)/python -m tests.api_check --minutes $(MINUTES) $(if $(SEED),--seed "$(SEED)")

bench: $(READY)
	$(BIN)/python -m bench $(ARGS)

check: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 --package cartd --package cartd_client
	$(BIN)/mypy --python-version 3.10 --cache-dir .mypy_cache/client --package cartd_client
	$(BIN)/vermin --quiet --no-tips --target=3.9- --violations client/cartd_client
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive cartd client twisted cartd.tac
	$(BIN)/python .ci/audit.py --or-warn

audit: $(READY)
	$(BIN)/python .ci/audit.py

clean:
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -rf $(VENV) build client/build .demo .bench .fuzz .soak .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache \
		.coverage htmlcov
