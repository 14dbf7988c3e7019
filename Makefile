# `make demo` and `make test` are all that a newcomer needs; each installs what it needs first.
# The demo takes about five minutes on two cores, the installation aside: torch.compile takes half a minute a network.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Runtimes of years ago, which can't live beside today's: tests replay artifacts there.
OLD := .venv-old
# TotalSegmentator, which judges our label maps. It sees torch and nnU-Net of the other environment: 6 GB once.
JUDGES := .venv-totalsegmentator
# Debian's programs for DICOM, unpacked and not installed: one of them judges what we write.
DICOM3TOOLS := .dicom3tools
# Of these examples/brain_extraction.py and its test read files alone: trained networks and an image.
DATA := deepbet nilearn
# Tests of one file stay together, and share what they made first. Which files begin tests/conftest.py says.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 15
# Only files that hold such tests are read for them.
SERIAL = $(shell grep -rlF mark.serial tests --include 'test_*.py')
# Tests start hundreds of processes, which would compile the package anew each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install old-runtimes judges docs demo demo-networks demo-brain reference-systems bench bench-perf bench-predict bench-precision bench-selftest bench-cohorts faults faults-cohort test test-all check lint reference clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[export,openvino,predict,dicom,preview,cluster,report,pyperf,sign,dev]'
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt $(DATA)
	touch $(STAMP)

old-runtimes: $(OLD)/.installed

$(OLD)/.installed:
	$(PYTHON) -m venv $(OLD)
	$(OLD)/bin/python -m pip install --quiet 'onnxruntime==1.16.3' 'numpy<2' 'opencv-python-headless==4.10.0.84' \
		&& touch $@ || { rm -r $(OLD); echo "no old runtimes for this Python (they need 3.11): their tests are skipped"; }

judges: $(JUDGES)/.installed $(DICOM3TOOLS)/.installed

$(JUDGES)/.installed: $(STAMP)
	$(PYTHON) -m venv $(JUDGES)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> $$($(JUDGES)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/segonnx.pth
	$(JUDGES)/bin/python -m pip install --quiet --no-deps 'totalsegmentator==2.18.0' 'dicom2nifti==2.6.2' 'pydicom>=3' \
		&& touch $@

$(DICOM3TOOLS)/.installed:
	mkdir -p $(DICOM3TOOLS)
	cd $(DICOM3TOOLS) && (apt-get download dicom3tools && dpkg-deb -x dicom3tools_*.deb . && rm dicom3tools_*.deb) \
		|| echo "no dicom3tools could be had: their tests are skipped"
	touch $@

# A network of each family: exported, verified, timed in four runtimes. Then a trained one on a real image.
DEMO := encoder-mobilenetv3-small unet-resnet18 stunet-s

# torch.compile then takes the processor's word for what it can, and compiles no test programs for each network;
# and its compilers' processes are copies of one that has imported torch.
demo: export TORCHINDUCTOR_VEC_ISA_OK := 1
demo: export TORCHINDUCTOR_WORKER_START := fork
demo: install
	$(MAKE) --jobs 2 demo-networks demo-brain
	$(BIN)/segonnx bench $(DEMO) --processes 1 --max-time 1 --no-roofline --json results/demo.json
	$(BIN)/segonnx report results/demo.json --html results/demo.html
	cat results/brain_extraction.txt

demo-networks: install
	$(BIN)/segonnx export $(DEMO)
	$(BIN)/segonnx verify $(DEMO:%=artifacts/%)

# It times nothing here: the exports run beside it.
demo-brain: install
	mkdir -p results
	$(BIN)/python examples/brain_extraction.py --rounds 0 > results/brain_extraction.txt 2>&1 || { cat results/brain_extraction.txt; exit 1; }

# Exports and verifies the fourteen reference systems, smallest first; what is there already is kept.
reference-systems: install
	$(BIN)/segonnx export --all
	$(BIN)/segonnx verify artifacts/*/

# All three tables and the page. The two largest models get few rounds: a pass takes up to two minutes.
bench: install
	$(BIN)/segonnx export --all
	$(BIN)/segonnx bench --all --json results/all.json
	$(BIN)/segonnx report results/all.json --html results/all.html

# What the rewrites gain: the artifacts, the same without rewrites, and PyTorch, in turns; then each rewrite by itself.
# The tables go into docs/performance.md and docs/internals/rewrites.md. Hours on two cores; with the two largest networks PyTorch runs eagerly alone.
STOCK := --diagnose --backend ort --backend ort-stock --backend openvino-stock
WAYS := $(STOCK) --backend eager --backend eager-channels-last --backend compile --backend compile-channels-last
PERF := results/perf-2d.json results/perf-3d.json results/perf-l.json results/perf-h.json

bench-perf: install
	$(BIN)/segonnx bench --family encoder --family 2d $(WAYS) --processes 1 --rounds 20 --json results/perf-2d.json
	$(BIN)/segonnx bench stunet-s totalsegmentator stunet-b $(WAYS) --processes 1 --rounds 12 --json results/perf-3d.json
	$(BIN)/segonnx bench stunet-l $(STOCK) --backend eager --processes 1 --rounds 6 --json results/perf-l.json
	$(BIN)/segonnx bench stunet-h $(STOCK) --backend eager --processes 1 --rounds 1 --json results/perf-h.json
	$(BIN)/segonnx report results/perf-2d.json --html results/perf.html
	$(BIN)/python -m benchmarks.speedups $(PERF)
	$(BIN)/python -m benchmarks.ablation time results/ablation
	$(BIN)/python -m benchmarks.ablation table results/ablation

# Whole images from file to file: nnU-Net, nnU-Net with OpenVINO, segonnx before and now; hours, on an idle machine.
# The table goes into docs/predict.md.
bench-predict: install
	$(BIN)/python -m benchmarks.whole_images race results/whole
	$(BIN)/python -m benchmarks.whole_images table results/whole

# 16 bits, int8 and NNCF's int8 beside float32, an hour or two on an idle machine. NNCF_PYTHON names a Python that has nncf and
# openvino; without it there are no rows of NNCF. The table goes into docs/precision.md.
bench-precision: install
	$(BIN)/python -m benchmarks.precision make results/precision
	$(BIN)/python -m benchmarks.precision time results/precision
	$(BIN)/python -m benchmarks.precision table results/precision

# Measures the bench itself, on an idle machine: some minutes. Writes docs/bench-selftest.md.
bench-selftest: install old-runtimes judges
	$(BIN)/python -m benchmarks.bench_selftest

# What cohorts take beside their networks, and where clusters and folders become the limit: some minutes, on an idle machine.
# Writes parts of docs/cohorts.md and docs/scale.md.
bench-cohorts: install
	mkdir -p results/cohort
	$(BIN)/python -m benchmarks.cohort_speed results/cohort
	$(BIN)/python -m benchmarks.scale scheduler results/scale
	$(BIN)/python -m benchmarks.scale folder results/scale results/cohort/artifact
	$(BIN)/python -m benchmarks.scale table results/scale "results/cohort/all report.jsonl"

# Damages artifacts, documents and archives in thousands of ways and kills commands: an hour. Writes docs/reliability.md.
faults: install
	$(BIN)/python -m benchmarks.faults

# Kills workers, clients and parts of cohorts at random: some minutes. Writes a part of docs/reliability.md.
faults-cohort: install
	mkdir -p results/faults-cohort
	$(BIN)/python -m benchmarks.faults_cohort cluster results/faults-cohort
	$(BIN)/python -m benchmarks.faults_cohort parts results/faults-cohort
	$(BIN)/python -m benchmarks.faults_cohort table results/faults-cohort

test: install old-runtimes judges
	$(BIN)/python -m pytest -m "not slow and not serial" $(PARALLEL)
	$(BIN)/python -m pytest -m "not slow and serial" --durations 5 $(SERIAL)

# With the full-size models, too, and what of the code ran: an hour and more.
test-all: install old-runtimes judges
	$(BIN)/python -m pytest -m "not serial" $(PARALLEL) --cov --cov-report=
	$(BIN)/python -m pytest -m serial --cov --cov-append --cov-report=term $(SERIAL)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# mypy needs one processor, and so do the installations of what only tests need.
check:
	$(MAKE) --jobs 2 --output-sync=target lint old-runtimes judges
	$(MAKE) test

# Puts the options of the commands into the pages.
docs: install
	$(BIN)/python -m tools.make_option_tables

# Counts the networks of the catalogue anew; see tools/make_reference.py for when.
reference: install
	$(BIN)/python tools/make_reference.py

clean:
	rm -rf $(VENV) $(OLD) $(JUDGES) $(DICOM3TOOLS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage*
