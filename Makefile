# `make quickstart` and `make test` are all a newcomer needs; both set up what they use.

PYTHONS := python3.11 python3.12 python3.10 python3
# The first of them that runs and has one of the versions that TensorFlow 2.17 is built for.
PYTHON ?= $(shell for p in $(PYTHONS); do $$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
	2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
NEWEST := .venv-newest
RUN := $(VENV)/bin/python -m
RUNS := runs/quickstart

# The run that was begun or continued last.
LOGDIR = $(shell find runs -name flags.cfg -printf '%T@ %h\n' 2>/dev/null | sort -rn | head -n 1 | cut -d ' ' -f 2-)
HOST := localhost

.PHONY: help quickstart test test-newest browser-test lint tensorboard clean

help:
	@echo "make quickstart   train and test an encoder on a demo corpus, in about five minutes"
	@echo "make test         run the tests"
	@echo "make test-newest  run them with the newest TensorFlow and Keras, in .venv-newest"
	@echo "make browser-test test what TensorBoard shows in a browser; needs Debian's chromium and chromium-driver"
	@echo "make lint         run the linter"
	@echo "make tensorboard  look at the latest run (LOGDIR=runs: at all; HOST=0.0.0.0: from other machines)"

# Installs again when a requirements file is newer than the last installation.
$(VENV)/runtime: requirements.txt
	@test -n "$(PYTHON)" || { echo "No suitable Python found (tried: $(PYTHONS)). vggvox_tf needs Python 3.10, 3.11 or" \
	"3.12, the versions that TensorFlow 2.17.1 and Keras 3.10 are built for. Install one, or name it:" \
	"make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; (3, 10) <= sys.version_info[:2] <= (3, 12) or sys.exit("Python %d.%d does not do: vggvox_tf \
	needs Python 3.10, 3.11 or 3.12, the versions that TensorFlow 2.17.1 and Keras 3.10 are built for." \
	% sys.version_info[:2])'
	@echo "Installing what requirements.txt names into $(VENV) (2 GB, a few minutes)"
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/development: $(VENV)/runtime requirements-dev.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

quickstart: $(VENV)/runtime
	$(RUN) tools.fetch_demo_corpus --output=data/demo
	$(RUN) vggvox_tf.train --flagfile=configs/quickstart_softmax.cfg --run=$(RUNS)/softmax
	$(RUN) vggvox_tf.train --flagfile=configs/quickstart_contrastive.cfg --init_from=$(RUNS)/softmax --run=$(RUNS)/contrastive
	$(RUN) vggvox_tf.evaluate --encoder=$(RUNS)/softmax/encoder.keras --trials=data/demo/trials.txt --allow_training_speakers
	$(RUN) vggvox_tf.evaluate --encoder=$(RUNS)/contrastive/encoder.keras --trials=data/demo/trials.txt --allow_training_speakers
	$(RUN) tools.quickstart_summary $(RUNS)

test: $(VENV)/development
	$(RUN) pytest -q -n 2 --dist loadfile --durations=10

$(NEWEST)/installed: requirements-newest.txt
	test -x $(NEWEST)/bin/pip || $(or $(PYTHON),$(error No suitable Python found (tried: $(PYTHONS)))) -m venv $(NEWEST)
	$(NEWEST)/bin/pip install --quiet --disable-pip-version-check --upgrade -r requirements-newest.txt
	@touch $@

test-newest: $(NEWEST)/installed
	$(NEWEST)/bin/python -m pytest -q -n 2 --dist loadfile

browser-test: $(VENV)/development
	$(RUN) pytest -q -m browser tests/test_browser.py

lint: $(VENV)/development
	$(RUN) ruff check .
	$(RUN) ruff format --check .

tensorboard: $(VENV)/runtime
	@test -n "$(LOGDIR)" || { echo "There is no run in runs/ yet. Give its folder: make tensorboard LOGDIR=…" >&2; exit 1; }
	$(RUN) tensorboard.main --logdir=$(LOGDIR) --host=$(HOST)

clean:
	rm -rf $(VENV) $(NEWEST) data/demo $(RUNS)
