# Every task has a target. Options go on the command line: make train CONFIG=base DATA=coco
# Each target calls one module; options that are not given get that module's default.

VENV = .venv
BIN = $(VENV)/bin
PIP = $(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

# All cores compile the packages to byte code, where pip would use one, and leave out their tests and
# Ray's reinforcement learning. Files that are not Python of this version, such as templates, are
# skipped.
COMPILE = $(BIN)/python -m compileall -q -j 0 -x '/(tests|rllib)/' $(VENV)/lib >/dev/null 2>&1 || true

# Waiting threads of torch sleep instead of spinning: with other work on the cores, two spinning
# threads train at a sixth of the speed.
export OMP_WAIT_POLICY ?= passive

# Empty here, so that environment variables of the same name change nothing.
BUNDLE =
HOST =
PORT =
CONFIG =
SET =
DATA =
OUT =
RESUME =
INIT =
VAL_FRACTION =
CHECKPOINT =
VARIANT =
FORMAT =
PATHS =
ANNOTATIONS =
PRECISION =
PROCESSES =
LIMIT =
RUNTIME =
SHAPES =
ARGS =
PYTHON =

# What a target takes is named in its help, as NAME=. Any other variable on the command line is
# refused, not ignored; these may be given with every target, and so may the service's settings.
EVERYWHERE = PYTHON VENV BIN PIP CXX NVCC NATIVE SERVING RESOLVE SIDE_BY_SIDE SHELL DETR_%
GOALS = $(or $(MAKECMDGOALS),help)
given = $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
taken = $(sort $(foreach goal,$(GOALS),$(shell \
	sed -n 's/^$(goal):.*## //p' $(firstword $(MAKEFILE_LIST)) | grep -o '[[:upper:]_]*=' | tr -d '=')))
lower = $(shell echo '$(1)' | tr '[:upper:]' '[:lower:]')
as_settings = $(foreach name,$(1),$(call lower,$(name))=$($(name)))
ifeq ($(MAKELEVEL),0) # where make calls itself, this has been done
UNKNOWN := $(filter-out $(EVERYWHERE),$(given))
UNKNOWN := $(if $(UNKNOWN),$(filter-out $(taken),$(UNKNOWN)))
ifneq ($(UNKNOWN),)
$(error unknown variable $(UNKNOWN)$(if $(filter SET,$(taken)),; use SET='$(call as_settings,$(UNKNOWN))'). \
make $(GOALS) takes $(or $(taken),none). Write variables of the environment before make)
endif
endif

# The native libraries are rebuilt when their sources or the installed packages change. Serving does
# not wait for those that a machine without a GPU cannot use.
NATIVE = build/plugins.stamp
SERVING = build/serving.stamp
KERNELS = $(wildcard plugins/*.py plugins/*/*/*.h plugins/*/*/*.cpp plugins/*/*/*.cu)

# One word for the shell, whatever it contains; a leading ~ is the home directory.
home = $(if $(filter ~/%,$(firstword $(1))),$(patsubst ~/%,$(HOME)/%,$(1)),$(1))
quote = '$(subst ','\'',$(call home,$(1)))'
option = $(if $($(1)),--$(2) $(call quote,$($(1))))

# Prints a command before it runs, like make itself, but nothing of what follows it in the recipe.
is_silent = $(findstring s,$(firstword -$(MAKEFLAGS)))
shown = $(if $(is_silent),,printf '%s\n' '$(subst ','\'',$(1))';) $(1)

# A process that the system kills cannot say why itself.
if_killed = || { status=$$?; [ $$status -ne 137 ] || echo 'killed, most often because memory ran out: \
the same command continues from the last save; a new run with SET=batch_size=auto takes what fits' >&2; exit $$status; }

.PHONY: help serve detect train report evaluate export weights reproduce install plugins browser peers triton test coverage test-fast test-gpu bench-gpu lint check lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- use

# The models of this repository: digits, and blood cells.
OURS = demo=bundles/demo,bccd=bundles/bccd

# The bundle of a published detector is made once, which needs the packages for export.
serve: $(VENV)/$(if $(VARIANT),full,service).stamp $(if $(VARIANT),$(NATIVE),$(SERVING)) ## serve a bundle over HTTP, or the published VARIANT= [BUNDLE= FORMAT= HOST= PORT= ARGS=]
	$(if $(and $(VARIANT),$(BUNDLE)),$(error give VARIANT=, a published detector, or BUNDLE=, one of your own))
	@$(if $(VARIANT)$(BUNDLE),,[ -n "$$DETR_BUNDLE$$DETR_BUNDLES" ] || export DETR_BUNDLES=$(OURS);) \
	$(if $(VARIANT),DETR_BUNDLE=$$($(BIN)/python -m export.published $(VARIANT) $(call option,FORMAT,format) $(ARGS)) && export DETR_BUNDLE && ) \
	exec env $(if $(BUNDLE),DETR_BUNDLE=$(call quote,$(BUNDLE))) $(if $(HOST),DETR_HOST=$(HOST)) \
		$(if $(PORT),DETR_PORT=$(PORT)) $(BIN)/python -m service

# PATHS is one path, if it exists; otherwise words, which may be quoted or have wildcards.
detect: $(VENV)/service.stamp $(SERVING) ## detect in images and folders: PATHS= [BUNDLE= OUT= ANNOTATIONS= ARGS=]
	$(if $(PATHS)$(ARGS),,$(error give PATHS=, images or folders))
	@paths=$(call quote,$(PATHS)); \
	if [ -e "$$paths" ]; then set -- "$$paths"; else eval "set -- $$paths"; fi; \
	$(BIN)/python -m service.detect "$$@" $(call option,BUNDLE,bundle) $(call option,OUT,out) \
	$(call option,ANNOTATIONS,annotations) $(ARGS)

train: $(VENV)/full.stamp $(NATIVE) ## train a model, the demo unless told otherwise [CONFIG= SET='field=value ...' DATA= VAL_FRACTION= OUT= RESUME= INIT= PROCESSES= ARGS=]
	@$(call shown,$(BIN)/$(if $(PROCESSES),torchrun --standalone --nproc-per-node $(PROCESSES),python) -m model.train $(call option,CONFIG,config) $(call option,SET,set) \
	$(call option,DATA,data) $(call option,VAL_FRACTION,val-fraction) \
	$(call option,OUT,out) $(call option,RESUME,resume) $(call option,INIT,init) $(ARGS)) $(if_killed)

# The command for a checkpoint, the first argument, or for a bundle, the second.
evaluation = $(if $(1),model.evaluate --checkpoint $(call quote,$(1)),\
	export.evaluate --bundle $(call quote,$(or $(2),bundles/demo)))

report: OUT = $(if $(CHECKPOINT)$(BUNDLE),runs/report.html,runs/data.html)
report: $(VENV)/full.stamp $(if $(CHECKPOINT)$(BUNDLE),$(NATIVE)) ## a page of the data set DATA=, before training; or of the results of CHECKPOINT= or BUNDLE= [VAL_FRACTION= OUT= ARGS=]
	$(if $(DATA)$(CHECKPOINT)$(BUNDLE),,$(error give DATA=, the folder of a data set, or CHECKPOINT= or BUNDLE=, a model))
	$(BIN)/python -m $(if $(CHECKPOINT)$(BUNDLE),$(call evaluation,$(CHECKPOINT),$(BUNDLE)) \
	$(call option,DATA,data),model.data.check $(call quote,$(DATA))) \
	--report $(call quote,$(OUT)) $(call option,VAL_FRACTION,val-fraction) $(ARGS)

evaluate: $(VENV)/full.stamp $(NATIVE) ## COCO AP of CHECKPOINT= or BUNDLE=, the demo's unless told otherwise [DATA= VAL_FRACTION= OUT= ARGS=]
	$(BIN)/python -m $(call evaluation,$(CHECKPOINT),$(BUNDLE)) \
	$(call option,DATA,data) $(call option,VAL_FRACTION,val-fraction) $(call option,OUT,out) $(ARGS)

export: CHECKPOINT = runs/demo/best.safetensors
export: BUNDLE = runs/demo/bundle
export: $(VENV)/full.stamp $(NATIVE) ## turn a checkpoint into a bundle [CHECKPOINT= BUNDLE= PRECISION=fp32|fp16|bf16|int8|fp8, or several: fp32,int8 DATA= VAL_FRACTION= RUNTIME=tensorrt SHAPES= ARGS=]
	$(BIN)/python -m export $(call quote,$(CHECKPOINT)) --out $(call quote,$(BUNDLE)) \
	$(call option,PRECISION,precision) $(call option,DATA,data) $(call option,VAL_FRACTION,val-fraction) $(call option,RUNTIME,runtime) $(if $(SHAPES),--shapes $(SHAPES)) $(ARGS)

weights: $(VENV)/full.stamp ## download and convert published weights: VARIANT=base|refine|two_stage|resnet18|34|50|101 [FORMAT= OUT= ARGS=]
	$(BIN)/python -m model.weights $(VARIANT) $(call option,FORMAT,format) $(call option,OUT,out) $(ARGS)

reproduce: $(VENV)/full.stamp $(NATIVE) ## AP of the published detectors on COCO val2017, all or one VARIANT= [LIMIT=500 OUT= ARGS=]
	$(BIN)/python -m benchmarks.reproduce $(call option,VARIANT,variants) $(call option,LIMIT,limit) \
	$(call option,OUT,out) $(ARGS)

# --- install

# The kernels are compiled while pip, which uses one core, installs the rest.
install: ## install everything into .venv [PYTHON=]
	@$(MAKE) --silent --no-print-directory --jobs=2 $(VENV)/full.stamp $(NATIVE)

OLD_ENOUGH = import sys; sys.exit(sys.version_info < (3, 11))

$(VENV)/pip.stamp:
	@for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3); do \
		$$python -c '$(OLD_ENOUGH)' 2>/dev/null && exec $$python -m venv $(VENV); \
	done; \
	echo 'Python 3.11 or newer is needed and was not found; name one: PYTHON=/path/to/python3.11' >&2; \
	exit 1
	@$(PIP) --upgrade pip
	@touch $@

$(VENV)/service.stamp: pyproject.toml constraints.txt | $(VENV)/pip.stamp
	@echo 'installing what serving needs into $(VENV)'
	@$(PIP) --group service
	@$(PIP) --no-deps --group headers
	@$(COMPILE)
	@touch $@

$(VENV)/full.stamp: $(VENV)/service.stamp
	@echo 'installing what training, export and tests need into $(VENV)'
	@$(PIP) --no-warn-conflicts --group dev
	@$(COMPILE)
	@touch $@

# Looks again every time: a compiler may have been installed since.
plugins: $(VENV)/service.stamp ## compile the native kernels into build/plugins
	@$(BIN)/python -m plugins.build

$(NATIVE) $(SERVING): $(KERNELS) $(VENV)/service.stamp
	@$(BIN)/python -m plugins.build $(if $(filter $(SERVING),$@),--to-serve)
	@mkdir -p $(@D) && touch $@

browser: ## install Chromium for the test of the page, where apt-get may be used
	@for name in chromium chromium-browser; do command -v $$name >/dev/null && exit; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo 'installing Chromium'; \
		apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium >/dev/null && exit; \
	fi; \
	echo 'no Chromium: the tests of the page will be skipped'

triton: $(VENV)/full.stamp ## install Triton, 900 MB, to test the operator's Triton kernels without a GPU
	@$(PIP) --group triton

peers: ## install HAProxy and Prometheus for the tests of deployment, where apt-get may be used
	@command -v prometheus >/dev/null && PATH="$$PATH:/usr/sbin" command -v haproxy >/dev/null && exit; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo 'installing HAProxy and Prometheus'; \
		apt-get update -qq && apt-get install -qq -y --no-install-recommends haproxy prometheus \
			>/dev/null && exit; \
	fi; \
	echo 'HAProxy or Prometheus is missing: the tests that need them will be skipped'

RESOLVE = $(BIN)/pip install --quiet --dry-run --ignore-installed

lock: $(VENV)/pip.stamp ## resolve the newest allowed version of everything into constraints.txt
	mkdir -p build
	$(RESOLVE) --report build/lock.json --group dev pip
	$(RESOLVE) --report build/lock-headers.json --no-deps --group headers
	$(BIN)/python -c 'import json; \
		files = ("build/lock.json", "build/lock-headers.json"); \
		found = [item["metadata"] for file in files for item in json.load(open(file))["install"]]; \
		print("# Written by make lock: the tested version of every package of every group."); \
		print(*sorted(f"""{m["name"].lower()}=={m["version"].split("+")[0]}""" for m in found), sep="\n")' \
		> build/constraints.txt
	mv build/constraints.txt constraints.txt

# --- check

# Tests run in one process more than there are cores, since some wait for servers and clocks.
SIDE_BY_SIDE = --numprocesses $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --maxprocesses 4 --dist worksteal

# Each process computes on one thread of PyTorch: a second one takes a seventh more CPU time. Byte code
# is kept, or every process would compile the repository and pytest's assertions again.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest

test: install browser peers ## run all tests, or some [ARGS=]
	$(PYTEST) $(or $(ARGS),$(SIDE_BY_SIDE))

# Apart, because measuring makes Python code twice as slow.
coverage: install browser peers ## run all tests and measure their coverage
	$(PYTEST) $(SIDE_BY_SIDE) --cov

test-fast: install ## run the tests that take less than ten seconds each [ARGS=]
	$(BIN)/python -m pytest -m 'not slow and not gpu' $(ARGS)

# We cannot fix warnings in NVIDIA's packages; building plans takes longer than other tests.
test-gpu: install ## run the tests that need a GPU; without one it fails [ARGS=]
	$(BIN)/python -m pytest -m gpu -rs -W default --timeout 1800 tests/gpu $(ARGS)

bench-gpu: install ## time operator and models on a GPU beside their peers, into benchmarks/results [ARGS=]
	$(BIN)/python -m benchmarks.bench_gpu $(ARGS)

lint: install ## format, lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test ## everything that must pass before a commit

clean: ## remove caches and build output; .venv, runs and weights stay
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
