# DeepZig's chores. `make` lists them; all they need is python3 >= 3.10 and a C++ compiler (to link artifacts).

PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
DEMO := artifacts/built/demo
DEMO_WEB := artifacts/built/demo-web
PORT ?= 8000
NPM := $(shell command -v npm)
PACKAGES := web/node_modules/.package-lock.json
ROOMS := $(patsubst %/__init__.py,%,$(wildcard */__init__.py))

.DEFAULT_GOAL := help
.PHONY: help setup view node-modules demo demo-web test test-slow lint typecheck bench docs clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/dev.stamp view ## make .venv with everything for development
	@$(if $(NPM),$(MAKE) --no-print-directory node-modules || echo "Without npm's packages some tests are skipped")

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "DeepZig needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)

# An environment is made again when pyproject.toml changes. `dev` holds all of `compile`.
$(VENV)/compile.stamp: pyproject.toml | $(BIN)/pip
	@echo "== Installing DeepZig and TVM's compiler into $(VENV)"
	$(BIN)/pip install --quiet --editable '.[compile]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(BIN)/pip
	@echo "== Installing DeepZig with all it takes to develop it into $(VENV) (PyTorch among it: minutes)"
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/compile.stamp $(VENV)/cross.stamp

$(VENV)/cross.stamp: pyproject.toml | $(BIN)/pip
	@echo "== Installing DeepZig, TVM's compiler and zig into $(VENV)"
	$(BIN)/pip install --quiet --editable '.[compile,cross]'
	@touch $@ $(VENV)/compile.stamp

node-modules: $(PACKAGES) ## install what web/ depends on, with npm

$(PACKAGES): web/package-lock.json
	@echo "== Installing npm's packages into web/node_modules"
	npm ci --prefix web --no-audit --no-fund --fetch-timeout 60000 --fetch-retries 1
	@touch $@

# Type checkers do not see setuptools' import hook: this is the package as links, in the shape it is imported in.
# Links to files: pyright does not follow links to folders.
view: ## make build/view, the package as type checkers see it
	@rm -rf build/view
	@find $(ROOMS) -name built -prune -o -name '*.py' -print -o -name py.typed -print | while read -r file; do \
		link=build/view/deepzig/$${file#deepzig/}; \
		mkdir -p "$$(dirname "$$link")" && ln -s "$(CURDIR)/$$file" "$$link"; \
	done

demo: $(VENV)/compile.stamp ## compile the reference model and ask it three questions
	@echo "== 1/2  Compile models/reference, a small model of the DeepSeek-V3 architecture, for this CPU"
	$(BIN)/deepzig-compile models/reference --target llvm --dtype bf16 --force -o $(DEMO)
	@echo "== 2/2  Ask it three questions"
	@for question in "What is 12 plus 30?" "Reverse the word lamp." "Which is larger, 41 or 14?"; do \
		echo "> $$question"; echo "$$question" | $(BIN)/deepzig chat $(DEMO) || exit; \
	done
	@echo "== Done. Talk with it: $(BIN)/deepzig chat $(DEMO)"

demo-web: $(VENV)/cross.stamp node-modules ## compile the reference model for browsers, and serve a page to talk with it
	@echo "== 1/2  Compile models/reference to WebAssembly and WebGPU"
	$(BIN)/deepzig-compile models/reference --target wasm --dtype f32 --force -o $(DEMO_WEB)/wasm
	$(BIN)/deepzig-compile models/reference --target webgpu --dtype f32 --force -o $(DEMO_WEB)/webgpu
	$(BIN)/python web/demo/build.py $(DEMO_WEB)
	@echo "== 2/2  Open http://127.0.0.1:$(PORT) in a browser; Ctrl-C stops the server"
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory $(DEMO_WEB) $(PORT)

# `.venv/bin/pytest`, not `python -m pytest`: the latter puts the checkout on sys.path, where `import ir` works and
# every class exists twice.
test: setup ## run the fast tests (under 10 minutes)
	@echo "== Fast tests; the slow ones are \`make test-slow\`"
	$(BIN)/pytest --numprocesses auto --dist worksteal

test-slow: setup ## run the slow tests: packaging, README, large shapes
	@echo "== Slow tests"
	$(BIN)/pytest -m slow --numprocesses auto --dist worksteal

lint: setup ## check style and formatting of imports with ruff
	$(BIN)/ruff check .

typecheck: setup ## check types with mypy (strict), pyright and, of web/, tsc
	$(BIN)/mypy
	$(BIN)/mypy bench docs
	$(BIN)/pyright --pythonpath $(BIN)/python
	test ! -e $(PACKAGES) || npm run check --prefix web --silent

bench: setup ## compare with transformers and with the memory bandwidth (minutes)
	$(BIN)/python bench/small.py

docs: setup ## write docs/ops.md and docs/passes.md from the code
	$(BIN)/python docs/generate.py

clean: ## remove the environment and everything built
	rm -rf $(VENV) build dist artifacts/built deepzig.egg-info web/node_modules web/types web/LICENSE
