# Each target sets up all that it needs. Set-up is repeated only when the requirements change.
PYTHON ?= python3
CONFIG ?= fashion_rn10_gn8pn
ARGS ?=
DATA ?= fashion
VENV := .venv
RUN_READY := $(VENV)/.run-ready
DEV_READY := $(VENV)/.dev-ready
PYTHON_IPU ?= $(PYTHON)
IPU_VENV := .venv-ipu-host
IPU_READY := $(IPU_VENV)/.ready
IPU_TESTS := tests/emulator tests/backends/test_ipu_backend.py tests/backends/test_ipu_lockstep.py tests/backends/test_ipu_operators.py tests/backends/test_ipu_train.py \
	tests/configs/test_batch.py tests/configs/test_config.py tests/normact/test_proxy.py tests/normact/test_norms.py tests/normact/test_norm_act.py tests/models/test_resnet.py \
	tests/models/test_efficientnet.py tests/models/test_models.py
# Some of each room, all from seconds: what a change breaks most likely, before `make test` looks at everything.
FAST_TESTS := tests/test_architecture.py \
	tests/analysis/test_curves.py tests/backends/test_image_loader.py tests/backends/test_torch_native.py \
	tests/configs/test_batch.py tests/configs/test_config_base.py \
	tests/datasets/test_datasets_folder.py tests/datasets/test_datasets_generated.py tests/datasets/test_held_out.py \
	tests/datasets/test_transforms.py tests/emulator/test_emulator_surface.py \
	tests/experiment/test_metrics.py tests/experiment/test_progress.py tests/experiment/test_resume.py \
	tests/experiment/test_run_folder.py tests/grids/test_grids.py tests/models/test_resnet.py \
	tests/normact/test_norms.py tests/normact/test_pointwise.py tests/normact/test_proxy.py \
	tests/training/test_loss.py tests/training/test_optimizer.py \
	tests/training/test_order.py tests/training/test_schedule.py
HOROVOD := build/horovod/horovod-0.28.1
HOROVOD_READY := $(VENV)/.horovod-ready

DOCS_VENV := .venv-docs
DOCS_READY := $(DOCS_VENV)/.ready

.PHONY: help train train-small test test-fast test-slow faults fuzz-images kills launches lint wheel docs browser bench data clean

help:
	@echo "make train [CONFIG=name] [ARGS='--set section.key=value ...']   train an experiment of configs/"
	@echo "make train-small [DATA=fashion|photos]   small ResNeXts and EfficientNets with BN, GN and GN+PN, one after another"
	@echo "make test-fast    some of each room, under a minute on two quiet cores"
	@echo "make test         the tests            make test-slow   the slow ones too"
	@echo "make lint         formatting, static checks and types"
	@echo "make wheel [TORCH='2.13.0 2.10.0']   dist/: a wheel with the CPU kernels inside, tried in empty environments"
	@echo "make docs         the documentation as a site: build/site/index.html"
	@echo "make browser      installs Debian's Chromium, if there is none: a test opens the report page in it"
	@echo "make test-ipu-host [PYTHON_IPU=python3.8]   layer, networks, emulator and IPU backend with torch 2.0.1"
	@echo "make horovod      builds Horovod into the environment, for several processes without poprun"
	@echo "make faults       every fault that a run must survive, slow ones too, with their table: build/faults.md"
	@echo "make fuzz-images [COUNT=20000]   damaged JPEG files through the image decoder, under the address sanitizer"
	@echo "make kills [COUNT=100]   a run killed at random moments, and compared to the bit; continues where it stopped"
	@echo "make launches [COUNT=500]   two processes started and ended repeatedly, counting failures; continues where it stopped"
	@echo "make bench        every number that this project publishes"
	@echo "make clean        remove the environment and build products; data and runs stay"

train: $(RUN_READY)
	$(VENV)/bin/python train.py --config $(CONFIG) $(ARGS)

train-small: $(RUN_READY)
	set -e; for network in rnx en en_g16; do for norm in bn gn gnpn; do \
	    $(VENV)/bin/python train.py --config $(DATA)_$${network}_$${norm} $(ARGS); done; done

test-fast: $(DEV_READY)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile -q -m "not slow" $(FAST_TESTS)

test: $(DEV_READY) data
	$(VENV)/bin/python -m pytest -n 2 -m "not slow"

test-slow: $(DEV_READY) data
	$(VENV)/bin/python -m pytest

# torch 2.0.1 exists for Python 3.8 to 3.11.
test-ipu-host: $(IPU_READY)
	$(IPU_VENV)/bin/python -m pytest -m "not slow" $(IPU_TESTS)

$(IPU_READY): requirements-ipu.txt
	@echo "setting up $(IPU_VENV), once: the packages of requirements-ipu.txt, for some minutes without a word"
	$(PYTHON_IPU) -m venv $(IPU_VENV)
	$(IPU_VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-ipu.txt
	touch $@

horovod: $(HOROVOD_READY)

# Its last release asks for C++14, and torch's headers for C++17.
$(HOROVOD_READY): $(DEV_READY)
	rm -rf $(dir $(HOROVOD)) && mkdir -p $(dir $(HOROVOD))
	$(VENV)/bin/pip install --quiet --disable-pip-version-check setuptools==80.9.0 wheel==0.45.1 cmake==3.31.6 cloudpickle==3.1.1
	$(VENV)/bin/pip download --quiet --disable-pip-version-check --no-binary :all: --no-deps --no-build-isolation \
		--dest $(dir $(HOROVOD)) horovod==0.28.1
	tar -xzf $(HOROVOD).tar.gz -C $(dir $(HOROVOD))
	sed -i 's/CMAKE_CXX_STANDARD 14/CMAKE_CXX_STANDARD 17/' $(HOROVOD)/CMakeLists.txt $(HOROVOD)/horovod/torch/CMakeLists.txt
	PATH="$(abspath $(VENV))/bin:$$PATH" HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 \
		HOROVOD_WITHOUT_MPI=1 HOROVOD_WITH_GLOO=1 \
		$(VENV)/bin/pip install --disable-pip-version-check --no-deps --no-build-isolation ./$(HOROVOD)
	touch $@

# Damage finds memory that is not the file's: the library is built with sanitizers, whose own has to be loaded first.
fuzz-images: $(DEV_READY)
	CXX=g++ LD_PRELOAD=$$(g++ -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 \
		$(VENV)/bin/python tests/image_faults.py --sanitized $(if $(COUNT),--count $(COUNT))

faults: $(DEV_READY) data
	$(VENV)/bin/python -m pytest -n 2 -m faults

kills: $(DEV_READY) data
	$(VENV)/bin/python tests/kills.py $(if $(COUNT),--count $(COUNT))

launches: $(DEV_READY) data
	$(VENV)/bin/python tests/launches.py $(if $(COUNT),--count $(COUNT))

lint: $(DEV_READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

# Built by this environment's torch, for which pip's isolated one would be gigabytes.
wheel: $(DEV_READY)
	rm -rf dist build/lib build/lib.* build/bdist.*
	PROXYNORM_BUILD_KERNELS=1 $(VENV)/bin/python -m build --no-isolation
	$(VENV)/bin/python tests/wheel.py dist/normact-*.whl $(if $(TORCH),--torch $(TORCH))

docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --quiet
	@echo "build/site/index.html"

$(DOCS_READY): requirements-docs.txt
	@echo "setting up $(DOCS_VENV), once: the packages of requirements-docs.txt, for some minutes without a word"
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@

# Without one its test is skipped. A font too: without recommended packages Debian's has none.
browser:
	command -v chromium || command -v chromium-browser || command -v google-chrome || \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; }

bench: $(DEV_READY) data
	PATH="$(abspath $(VENV))/bin:$$PATH" ./run_benchmarks.sh

data: $(RUN_READY)
	$(VENV)/bin/python -m datasets.fashion_mnist
	$(VENV)/bin/python -m datasets.photo_patches
	$(VENV)/bin/python -m datasets.fashion_scenes

$(RUN_READY): requirements.txt
	@echo "setting up $(VENV), once: the packages of requirements.txt, for some minutes without a word"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(DEV_READY): requirements-dev.txt $(RUN_READY)
	@echo "setting up $(VENV), once: the packages of requirements-dev.txt, for some minutes without a word"
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) $(IPU_VENV) $(DOCS_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
