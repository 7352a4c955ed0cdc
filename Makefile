# Each target makes .venv and installs what it needs, so any of them works as the first command on a
# machine with Python 3.11, make and git.
#
#   make demo         an agent learns in the generated Doom and is scored in the real one
#   make test         the test suite
#   make lint         ruff and mypy
#   make train-doom   a world and an agent for Doom as the recipes are now, from an empty folder
#   make train-pong   the same for two-player Pong
#   make test-rllib   RLlib over the environments, in an environment of its own
#
# TORCH_INDEX=URL takes PyTorch from the wheels listed there (for example its CPU builds).

PYTHON ?= python3
export TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

# No window, and nothing imported by accident from the current folder.
export SDL_VIDEODRIVER ?= dummy
export PYTHONSAFEPATH ?= 1

.PHONY: demo test slow lint train-doom train-pong test-rllib

demo: $(VENV)/demo.stamp
	$(BIN)/python examples/demo.py

# the arrays of tests are tiny: threads would only wait for each other
test slow: export OMP_NUM_THREADS ?= 1

# one process a core
test: $(VENV)/test.stamp
	$(BIN)/pytest --numprocesses auto --dist worksteal

slow: $(VENV)/test.stamp
	$(BIN)/pytest -m slow

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# two rounds: the second adds what the first round's agent meets in the real game, and learns to sample
DOOM := runs/doom_take_cover
train-doom: $(VENV)/test.stamp
	$(BIN)/magi-world collect doom-take-cover --out $(DOOM)/data --chunks 60000 --name doom-take-cover/round0-v0
	$(BIN)/magi-world train-world doom_take_cover --data $(DOOM)/data --out $(DOOM)/round0 \
		--set dit.objective=flow
	$(BIN)/magi-world train-agent --world $(DOOM)/round0/world --out $(DOOM)/agent0 --starts-from $(DOOM)/round0
	$(BIN)/magi-world collect doom-take-cover --out $(DOOM)/data --chunks 48000 --name doom-take-cover/round1-v0 \
		--first-episode 2000 --agent $(DOOM)/agent0 --world $(DOOM)/round0/world
	$(BIN)/magi-world train-world doom_take_cover --data $(DOOM)/data --out $(DOOM)/round1 \
		--init $(DOOM)/round0/world --stage dit --stage outcome
	$(BIN)/magi-world evaluate $(DOOM)/round1/world --data $(DOOM)/data --out $(DOOM)/report
	$(BIN)/magi-world train-agent --kind fitted-q --world $(DOOM)/round1/world --out $(DOOM)/values \
		--starts-from $(DOOM)/round1
	$(BIN)/magi-world train-agent --kind fitted-q --world $(DOOM)/round1/world --out $(DOOM)/agent \
		--starts-from $(DOOM)/round1 --values $(DOOM)/values
	$(BIN)/magi-world evaluate-agent --world $(DOOM)/round1/world --agent $(DOOM)/agent

PONG := runs/pong_duel
train-pong: $(VENV)/test.stamp
	$(BIN)/magi-world collect pong-duel --out $(PONG)/data --chunks 80000 --horizon 256
	$(BIN)/magi-world train-world pong_duel --data $(PONG)/data --out $(PONG)/world-run
	$(BIN)/magi-world evaluate $(PONG)/world-run/world --data $(PONG)/data --out $(PONG)/report
	$(BIN)/magi-world train-agent --self-play --world $(PONG)/world-run/world --out $(PONG)/agent \
		--starts-from $(PONG)/world-run --clips 6000 --eventful 0.8 --soon 10
	$(BIN)/magi-world evaluate-selfplay --world $(PONG)/world-run/world --agent $(PONG)/agent

# RLlib pins an older Gymnasium than everything else is tested with
RLLIB := .venv-rllib
test-rllib:
	$(PYTHON) -m venv $(RLLIB)
	$(RLLIB)/bin/python -m pip install --disable-pip-version-check \
		--constraint constraints-rllib.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(RLLIB)/bin/python -m pip install --disable-pip-version-check \
		--constraint constraints-rllib.txt 'ray[rllib]' pytest pytest-timeout hypothesis --editable .
	OMP_NUM_THREADS=1 $(RLLIB)/bin/python -m pytest tests/examples/test_clients.py -k rllib

# torch comes first and alone: it is the one package with an index of its own.
$(VENV)/torch.stamp: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"magi_world needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@touch $@

$(VENV)/demo.stamp: pyproject.toml $(VENV)/torch.stamp
	$(INSTALL) --editable '.[doom,video,data]'
	@touch $@

$(VENV)/test.stamp: pyproject.toml $(VENV)/torch.stamp
	$(INSTALL) --editable '.[test]'
	@touch $@
