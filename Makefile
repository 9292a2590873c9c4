# What needs a guest runs in namespaces of its own (tests/bench) as root; the machine is left as it was found,
# but for the packages below.
#
#   make demo    three guests, updated while they run, up and back
#   make test    everything that proves a change good; CI runs it, and lab-test
#   make check   the part of it that needs no guest, about a minute
#   make dashboards      the dashboards' JSON from their Python, and pictures of what they show
#   make bench   how long guests stand still by hostagent, and by what people use instead; bench-quick in minutes;
#                bench-plots draws what was measured last for the documentation
#   make bench-metrics   how long a scrape takes, and what an exporter's memory does over a day's updates
#   make load    what the agent takes beside 200 made-up guests, and 20 real ones: a quarter of an hour or more
#   make day     a day's updates, 1000 on the fake and 50 of real guests, that must leave nothing behind
#   make soak    two hundred handovers undone at the worst moment
#   make shell   a shell in the bench
#   make lab-up    two whole hosts with Vagrant; lab-demo swaps QEMU, KVM modules and kernel there, lab-down removes them
#   make lab-test  a whole host with systemd, AppArmor and KVM: QEMU, KVM modules and the kernel swapped under guests
#   make deb       the package for Debian 12, build/deb/hostagent_*.deb
#   make lab-package  that package on such a host: installed, upgraded while guests are held, removed
#   make install   onto this machine, or into DESTDIR; PREFIX is /usr/local unless given. Python has to be 3.11
#
# BENCH_ARGS='--libvirt 11.3 --daemon virtqemud' has another libvirt in the bench, for shell, soak or a part of test.

PYTHON ?= python3
PYTEST_ARGS ?=
SOAK_ARGS ?=
BENCH_ARGS ?=
PREFIX ?= /usr/local
DESTDIR ?=

# To build libvirt-python and the test guest, and to make the bench's root file system.
PACKAGES := gcc libc6-dev libvirt-dev make mmdebstrap pkg-config python3-dev python3-venv util-linux

# To make the lab's host an image of a disk.
LAB_PACKAGES := e2fsprogs fdisk openssh-client qemu-utils

BIN := .venv/bin
enter = $(BIN)/python -m tests.bench.enter $(1) --
real = $(BIN)/python -m tests.bench.left_over -- $(call enter,$(1)) $(BIN)/python -m pytest -s -v --durations=15
ENTER := $(call enter,$(BENCH_ARGS))
REAL := $(call real,$(BENCH_ARGS))
REAL_CRASHES := $(filter-out %_hold.py,$(wildcard tests/crash/test_real_*.py))
FAULTS := $(REAL_CRASHES) tests/hosts
GUESTS := tests/agent tests/bench tests/contract tests/grafana tests/guests tests/metrics tests/crash/test_real_hold.py
SWEEPS := tests/crash --ignore-glob=*/test_real_*
LIBVIRTD := tests/contract tests/hosts tests/libvirts -k "real or there_and_back"
VIRTQEMUD := tests/contract tests/libvirts -k "real and (agent or daemon or libvirt or record) or there_and_back"
export DEBIAN_FRONTEND := noninteractive

.PHONY: demo test check load day soak shell ready bench bench-quick bench-plots bench-metrics promtool dashboards machine venv rootfs rootfs-9.0 guest deb install lab lab-packages lab-package lab-test lab-up lab-demo lab-down clean
.DEFAULT_GOAL := check

demo: ready
	$(ENTER) $(BIN)/python -m tests.bench.demo

# Benches side by side: most of what happens in one is waiting, and sweeps over the fake host, which have no deadlines,
# take what the others leave of the processors. A part (PYTEST_ARGS) needs only one. What hostagent asks of libvirt, and
# a short way there and back, once more with a newer one and with its modular daemon; with the newer one from host to
# host, too.
test: check ready rootfs promtool
ifeq ($(PYTEST_ARGS),)
	$(BIN)/python -m tests.bench.side_by_side \
	    'faults=$(REAL) $(FAULTS)' 'guests=$(REAL) $(GUESTS)' 'sweeps=nice -n 10 $(REAL) $(SWEEPS)'
	$(BIN)/python -m tests.bench.side_by_side \
	    'libvirtd 11.3=$(call real,--libvirt 11.3) $(LIBVIRTD)' \
	    'virtqemud 11.3=$(call real,--libvirt 11.3 --daemon virtqemud) $(VIRTQEMUD)'
else
	$(REAL) tests --ignore=tests/unit $(PYTEST_ARGS)
endif

check: venv
	$(BIN)/ruff check . dist/tools
	$(BIN)/ruff format --check . dist/tools
	$(BIN)/mypy --strict hostagent bench grafana tests/bench dist/tools
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/unit -q

# The lab's host is emulated where this machine has no KVM that nests; it takes about a quarter of an hour then.
lab-test: lab
ifeq ($(PYTEST_ARGS),)
	$(BIN)/python -m tests.bench.side_by_side \
	    'swapped=$(call real) tests/lab/test_lab.py' 'turned back=$(call real) tests/lab/test_turned_back.py'
else
	$(call real) $(PYTEST_ARGS)
endif

# What the package says that it does, tried: emulated, it takes some ten minutes.
lab-package: lab deb
	$(call real) tests/lab/test_package.py $(PYTEST_ARGS)

lab: ready lab-packages
	@vm-images/host/build
	@vm-images/host/files

# On a machine with Vagrant, its libvirt provider, and a libvirt of its own.
lab-up: lab
	vagrant up --provider=libvirt

lab-demo:
	@vm-images/host/demo

lab-down:
	vagrant destroy --force
	vagrant box remove --force hostagent-lab

deb: venv
	@dist/build-deb

install: venv
	$(BIN)/pip install -q --disable-pip-version-check setuptools wheel
	dist/download build/wheels
	PYTHON=$(BIN)/python WHEELS=build/wheels PREFIX=$(PREFIX) DESTDIR=$(DESTDIR) dist/install

load: ready
	$(BIN)/python -m tests.bench.load_fake 200 300 0
	$(ENTER) $(BIN)/python -m tests.bench.load_real 20 300 0

day: ready
	$(BIN)/python -m tests.bench.load_fake 0 0 1000
	$(ENTER) $(BIN)/python -m tests.bench.load_real 2 0 50

soak: ready
	$(ENTER) $(BIN)/python -m tests.bench.soak $(SOAK_ARGS)

shell: ready
	$(ENTER) bash

# What Grafana imports, anew from its Python; and what it shows of updates of real guests, as pictures.
dashboards: ready promtool
	$(BIN)/python -m grafana
	$(ENTER) $(BIN)/python -m tests.grafana.take
	$(BIN)/python -m tests.grafana.picture

# Debian's, unpacked below build/: to read metrics and alert rules as Prometheus does.
promtool: venv
	@$(BIN)/python -m tests.metrics.promtool

bench: ready rootfs
	$(ENTER) $(BIN)/python -m bench.pauses

bench-quick: ready rootfs
	$(ENTER) $(BIN)/python -m bench.pauses --quick

bench-plots: venv
	$(BIN)/python -m bench.plots

bench-metrics: venv
	$(BIN)/python -m bench.metrics

# The three take about a minute together, and wait for different things.
ready: machine
	@$(MAKE) --no-print-directory -j3 --output-sync=target venv rootfs-9.0 guest

# Installs only what is missing; package lists may be absent on a fresh machine, or too old to download from.
machine: WANTED = $(PACKAGES)
lab-packages: WANTED = $(LAB_PACKAGES)
machine lab-packages:
	@missing=; \
	for package in $(WANTED); do \
	    dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q '^install ok installed' \
	        || missing="$$missing $$package"; \
	done; \
	[ -z "$$missing" ] && exit 0; \
	echo "installing$$missing"; \
	apt-get -qq install -y --no-install-recommends $$missing 2>/dev/null \
	    || { apt-get -qq update && apt-get -qq install -y --no-install-recommends $$missing; }

venv: .venv/made

.venv/made: pyproject.toml | machine
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

rootfs: | machine
	@$(PYTHON) -m tests.bench.rootfs

rootfs-9.0: | machine
	@$(PYTHON) -m tests.bench.rootfs 9.0

guest: | machine
	@vm-images/build

clean:
	rm -rf build .venv
