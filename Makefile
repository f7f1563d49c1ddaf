# make demo | test | ui | bench | wheelhouse. Needs Python 3.11 to 3.13 with pip, and nothing else.
PY ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
TEST_JOBS ?= 2
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: demo test ui bench wheelhouse lint
.DELETE_ON_ERROR:

$(VENV)/.ok: pyproject.toml constraints.txt
	$(PY) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), "medsynth needs Python 3.11 to 3.13; pass PY=python3.12"'
	$(PY) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e '.[test]'
	@touch $@

.venv: $(VENV)/.ok

demo: $(VENV)/.ok  ## prepare to release on the built-in phantom hospital
	$(BIN)/medsynth run experiment=phantom_2d run.name=demo $(DEMO_ARGS)

test: $(VENV)/.ok
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q -n $(TEST_JOBS) --dist loadfile

ui: $(VENV)/.ok  ## the tracked runs in a browser, on this machine alone
	@echo "open http://127.0.0.1:5050/#/experiments/1/runs?workflowType=machine_learning"
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_ENABLE_AI_GATEWAY=false $(BIN)/mlflow server --host 127.0.0.1 --port 5050 --workers 1 \
		--backend-store-uri sqlite:///$(CURDIR)/runs/mlflow.db --artifacts-destination $(CURDIR)/runs/mlflow-artifacts

bench: $(VENV)/.ok  ## against named peers, dated, to benchmarks/results
	$(BIN)/python -m benchmarks

wheelhouse: $(VENV)/.ok  ## every wheel for a site without a network: pip install --no-index --find-links wheelhouse medsynth-diffusion
	$(BIN)/python -m pip wheel -q --disable-pip-version-check -w wheelhouse -c constraints.txt .
