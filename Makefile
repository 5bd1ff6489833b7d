# The two commands of the README, each from a bare clone: `make demo` and `make test`. What they need they set up once, in .venv and
# build; a second call rebuilds nothing.
#   PYTHON=/path/to/python   use the torch (2.11 to 2.13) of this interpreter instead of installing the pinned CPU build
#   JOBS=2                   compile and test jobs (default: all cores)
#   ARGS=...                 passed on: make demo ARGS="--data fashion-mnist", make test ARGS="-k numerics"
PYTHON ?=
JOBS ?= $(shell nproc)
ARGS ?=
BUILD := build/python
SANITIZED := build/sanitized
PY := .venv/bin/python
# One stamp for each source of torch, so that naming another interpreter sets up again.
VENV := .venv/.torch-$(if $(PYTHON),$(subst /,_,$(PYTHON)),pinned)

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)

.PHONY: demo test test-all test-cpp test-python test-sanitized test-aarch64 build build-all lint format clean
.DEFAULT_GOAL := build

demo: build
	@cmake --build $(BUILD) --target run_scripted -- --no-print-directory
	$(PY) examples/python/demo.py $(ARGS)

test: test-cpp test-python

test-all: test-sanitized test-aarch64 test-cpp build-all
	$(PY) -m pytest -m "" $(ARGS)

test-cpp: build-all
	ctest --test-dir $(BUILD) --output-on-failure -j $(JOBS)

test-python: build-all
	$(PY) -m pytest $(ARGS)

test-sanitized: $(VENV)
	cmake -S . -B $(SANITIZED) -DCMAKE_BUILD_TYPE=RelWithDebInfo -DOCTET_SANITIZE=address,undefined -DPython3_EXECUTABLE=$(CURDIR)/$(PY)
	cmake --build $(SANITIZED)
	ctest --test-dir $(SANITIZED) --output-on-failure

# The Arm kernels, cross-compiled and run in an emulator.
test-aarch64:
	tests/cpp/kernels/aarch64.sh build/aarch64

# Python sees the sources themselves (editable install); CMake decides what has to be compiled again.
build: $(BUILD)/.editable
	@cmake --build $(BUILD) --target _C -- --no-print-directory
	@cmake --install $(BUILD) --prefix python/octet >/dev/null

# The C++ tests and examples too.
build-all: build
	@cmake --build $(BUILD) -- --no-print-directory

$(BUILD)/.editable: $(VENV) setup.py pyproject.toml version.txt
	CMAKE_ARGS="-DOCTET_BUILD_TESTS=ON -DOCTET_BUILD_EXAMPLES=ON $(CMAKE_ARGS)" \
	  $(PY) -m pip install -v --no-deps --no-build-isolation -e .
	@touch $@

$(VENV): pyproject.toml tools/bootstrap.sh
	tools/bootstrap.sh $(PYTHON)
	@rm -f .venv/.torch-* && touch $@

lint: $(VENV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	clang-format --dry-run -Werror $$(git ls-files '*.h' '*.cpp')

format: $(VENV)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	clang-format -i $$(git ls-files '*.h' '*.cpp')

clean:
	rm -rf build dist .venv demo-output python/octet/lib python/octet/include python/octet/share python/octet/_C*.so
