# nodeskoop. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
export PATH := $(CURDIR)/.cache/go/bin:$(CURDIR)/.cache/tools/usr/bin:$(CURDIR)/.cache/tools/usr/sbin:$(PATH):/usr/local/go/bin:/usr/sbin:/sbin
export CGO_ENABLED ?= 0
# Daemons started here keep their state in this tree.
export STATE_DIRECTORY := $(CURDIR)/build/state
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo --preserve-env=PATH,CGO_ENABLED,STATE_DIRECTORY,GOPATH,GOCACHE,GOPROXY,GOFLAGS)
GO ?= go
VERSION ?= $(shell packaging/version)
LDFLAGS := -s -w -X main.version=$(VERSION)
BENCHTIME ?= 1s
FUZZTIME ?= 20s
FUZZ ?= ./...
SECONDS_TO_RUN ?=
DURATION ?= 10m
FAULTS ?= all
NODES ?= all
NODE ?=
RECORDED ?= $(CURDIR)/packaging/prometheus/tests/recorded
ARCH ?= amd64
KERNELS_FLAGS ?=
PAIRS ?= 12
SERVERS ?=
PROBES ?=
DEBIAN ?= bookworm
STAGES ?=

.DEFAULT_GOAL := build
.PHONY: help go build run demo bench-bpf test test-unit test-install test-vm test-kernels test-nodes quiet record race lint generate render record-boards check-metrics check-rules transcripts screenshots fuzz bench bench-compare bench-curves bench-pods bench-servers bench-gate soak test-faults test-escalation faults-doc deps packages check-packages clean

help: ## print this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' Makefile

# Installs or finds Go; targets that depend on deps get it from there.
go:
	@.ci/get-go

build: go ## build build/nodeskoop
	@mkdir -p build
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o build/nodeskoop ./cmd/nodeskoop

run: build ## run the daemon here, with its textfile in build/run, and show each update of the file
	$(SUDO) packaging/run-here $(SECONDS_TO_RUN)

demo: ## cause some events, in namespaces of its own, for `make run` or `nodeskoop events` to show
	$(SUDO) packaging/demo

deps: go ## install the tests' dependencies with apt; unpack services, and Go if there is none, below .cache
	@.ci/deps

# Packages run one after another, because tests see each other's effects in the
# kernel.
test: deps ## run all tests, as root; fails if a test is skipped that this machine could run
	@mkdir -p build
	$(GO) test -run '^$$' ./... > /dev/null # build in parallel
	$(SUDO) env NODESKOOP_TEST_STRICT=1 $(GO) test -p 1 -count=1 -v -timeout 20m ./... > build/test.log 2>&1 \
	  || { .ci/report-failures build/test.log; echo 'the whole output is in build/test.log'; exit 1; }
	@grep -E '^(ok|\?|---) ' build/test.log | grep -v '^--- PASS'
	@.ci/report-skips build/test.log

test-unit: go ## run the tests that need neither root nor make deps (seconds)
	@.ci/test-unit

# The test machine is a container with systemd as process 1.
test-install: deps packages ## install the packages on a Debian machine (DEBIAN=trixie for another release) with node_exporter, Prometheus and pods, and test everything on it (STAGES=0,15 for some stages)
	$(SUDO) env NODESKOOP_TEST_STRICT=1 NODESKOOP_INSTALL_DEBIAN='$(DEBIAN)' NODESKOOP_INSTALL_ONLY='$(STAGES)' \
	  NODESKOOP_INSTALL_DEB="$$(ls $(CURDIR)/build/packages/*_$$(dpkg --print-architecture).deb)" \
	  NODESKOOP_INSTALL_RPM="$$(ls $(CURDIR)/build/packages/*.$$(uname -m).rpm)" \
	  $(GO) test -count=1 -v -timeout 15m ./internal/e2e/install

# The kernel is the release's own, with hooks that this machine's may lack, and control
# groups are cgroup v2.
test-vm: deps packages ## install the package in a VM with Debian 13 and its kernel, and test on it what a container cannot show: all 23 probes, the unit's limits, events of slow drivers and softirqs
	@mkdir -p build
	$(GO) build -o build/test-kernels ./internal/e2e/kernels
	$(SUDO) env NODESKOOP_TEST_STRICT=1 NODESKOOP_INSTALL_VM=$(CURDIR)/build/test-kernels TMPDIR=/var/tmp \
	  NODESKOOP_INSTALL_DEB="$$(ls $(CURDIR)/build/packages/*_$$(dpkg --print-architecture).deb)" \
	  $(GO) test -count=1 -v -timeout 60m -run '^TestVM$$' ./internal/e2e/install

# The kubelet and containerd 2 are built of Go modules, once; internal/e2e/nodes/binaries keeps them.
test-nodes: deps ## run a kubelet's pods on containerd 1.6, 1.7 and 2, restart and kill everything, and hold what nodeskoop shows against the kubelet and the kernel (NODES=short: one containerd, fewer pods); the table is in build/nodes.md
	@mkdir -p build
	binaries=$$(internal/e2e/nodes/binaries $(if $(filter short,$(NODES)),kubelet containerd-1.6)); \
	$(SUDO) env NODESKOOP_TEST_STRICT=1 NODESKOOP_NODES='$(NODES)' NODESKOOP_NODES_BINARIES="$$binaries" NODESKOOP_NODES_TABLE=$(CURDIR)/build/nodes.md \
	  sh -c '$(GO) test -count=1 -v -timeout 40m ./internal/e2e/nodes && { [ "$$NODESKOOP_NODES" = short ] || $(GO) test -count=1 -v -run "^TestSandboxAPI$$" ./collect/pod; }'

# Only entries about the test machine count; other machines may run on the same
# kernel.
quiet: deps packages ## run a healthy machine for DURATION, which must log no warning, then cause ten faults, which must each be reported
	$(SUDO) env NODESKOOP_TEST_STRICT=1 NODESKOOP_QUIET=$(DURATION) \
	  NODESKOOP_INSTALL_DEB="$$(ls $(CURDIR)/build/packages/*_$$(dpkg --print-architecture).deb)" \
	  $(GO) test -count=1 -v -timeout 0 -run '^(TestQuiet|TestTroubles)$$' ./internal/e2e/install

record: deps packages ## record the alerts' metrics of a machine for DURATION (61m), for check-rules; NODE=idle, busy, debian, troubles, gone (80m) or all-probes
	$(SUDO) env NODESKOOP_TEST_STRICT=1 NODESKOOP_RECORD=$(if $(filter file,$(origin DURATION)),61m,$(DURATION)) NODESKOOP_RECORD_NODE='$(NODE)' NODESKOOP_RECORD_DIR='$(RECORDED)' \
	  NODESKOOP_INSTALL_DEB="$$(ls $(CURDIR)/build/packages/*_$$(dpkg --print-architecture).deb)" \
	  $(GO) test -count=1 -v -timeout 0 -run '^TestRecord$$' ./internal/e2e/install

# All of it takes a quarter of an hour; FAULTS=short takes a minute.
test-faults: deps ## make the faults that diagnose names, in pods and on a wire, and hold what it says of them (FAULTS=short, singles, doubles, healthy, or causes: A,B+C)
	$(SUDO) env NODESKOOP_TEST_STRICT=1 NODESKOOP_FAULTS='$(FAULTS)' $(GO) test -count=1 -v -timeout 60m ./internal/e2e/faults

test-escalation: deps ## make faults, and show which of them make the daemon watch closer, and which events then explain them (FAULTS=all, healthy, or causes: A,B)
	$(SUDO) env NODESKOOP_TEST_STRICT=1 NODESKOOP_ESCALATE='$(FAULTS)' $(GO) test -count=1 -v -timeout 90m -run '^TestEscalation$$' ./internal/e2e/faults

faults-doc: deps ## make all faults, also those of the whole machine, and write what diagnose says of them into docs/faults.md
	$(SUDO) internal/e2e/compare/tools
	$(SUDO) env NODESKOOP_TEST_STRICT=1 NODESKOOP_FAULTS=all NODESKOOP_FAULTS_MACHINE=1 NODESKOOP_FAULTS_DOC=$(CURDIR)/docs/faults.md $(GO) test -count=1 -v -timeout 60m ./internal/e2e/faults

test-kernels: deps ## run the tests that depend on the kernel in VMs, on all kernels that Debian has (ARCH=arm64 for those)
	@mkdir -p build
	$(GO) build -o build/test-kernels ./internal/e2e/kernels
	$(SUDO) build/test-kernels -arch $(ARCH) $(KERNELS_FLAGS)

race: deps ## run the tests under the race detector (needs a C compiler)
	$(SUDO) env CGO_ENABLED=1 $(GO) test -p 1 -race -short -timeout 20m ./...

lint: go ## go vet, staticcheck, shellcheck
	$(GO) vet ./...
	$(GO) tool -modfile=packaging/tools/go.mod staticcheck -checks inherit,ST1020,ST1021,ST1022 ./...
	shellcheck .ci/run .ci/deps internal/e2e/nodes/binaries .ci/get-go .ci/report-failures .ci/report-skips .ci/test-unit .ci/check-bpf bpf/internal/objects/bpf2go bpf/internal/objects/generate packaging/run-here packaging/update-docs packaging/demo \
	  packaging/version packaging/copyright packaging/build-packages packaging/check-packages packaging/deb/postinst packaging/deb/prerm packaging/deb/postrm
	shellcheck -s sh packaging/rpm/post packaging/rpm/preun packaging/rpm/postun internal/e2e/install/make-root internal/e2e/compare/tools

generate: go ## generate the lists of probes, shipped configuration, reference and tables in docs/, dashboards, BPF objects
	$(GO) run ./internal/lists
	bpf/internal/objects/generate
	@$(MAKE) --no-print-directory build
	build/nodeskoop config --default > packaging/nodeskoop.toml
	build/nodeskoop docs catalog > systemd/nodeskoop.catalog
	packaging/update-docs
	$(GO) run ./packaging/grafana

# npm's packages and what is built of them stay below .cache; nothing of them is packaged.
render: deps ## draw the dashboards with Grafana's own components from recorded nodes, look at each panel, show reports in a browser, and write the pictures into docs/images
	@.ci/deps render
	NODESKOOP_TEST_STRICT=1 NODESKOOP_RENDER=$(CURDIR)/docs/images $(GO) test -count=1 -v -timeout 30m -run '^TestRender$$' ./packaging/grafana ./cmd/nodeskoop/internal/report

record-boards: ## record the nodes for make render for DURATION (15m): one with all probes and faulty pods, and three others
	@for node in all-probes busy debian troubles; do \
	  $(MAKE) record NODE=$$node DURATION=$(if $(filter file,$(origin DURATION)),15m,$(DURATION)) RECORDED=$(CURDIR)/packaging/grafana/testdata/recorded; \
	done

check-metrics: build deps ## sample this machine and check the result with promtool
	$(SUDO) build/nodeskoop collect --config /dev/null > build/collect.prom
	promtool check metrics < build/collect.prom > build/promtool.out 2>&1 || true
	@if grep -vE 'counter metrics should have "_total" suffix' build/promtool.out | grep .; then exit 1; fi
	@echo "$$(grep -vc '^#' build/collect.prom) series, no remark but on _total"

transcripts: build deps ## cause the faults of docs/troubleshooting.md in pods and write the tools' output into the page
	$(SUDO) env NODESKOOP_TRANSCRIPTS=1 $(GO) test ./internal/e2e/transcripts -count=1 -timeout 15m

check-rules: deps ## check and test the alert and recording rules with promtool, on recorded nodes too
	promtool check rules packaging/prometheus/nodeskoop.rules.yml
	promtool test rules packaging/prometheus/tests/*.yml
	@rm -rf build/recorded
	@mkdir -p build/recorded
	@cp packaging/prometheus/nodeskoop.rules.yml build/recorded
	@shopt -s nullglob; for f in '$(RECORDED)'/*.yml.gz; do \
	  to=build/recorded/$$(basename "$$f" .gz); gunzip -c "$$f" > "$$to"; promtool test rules "$$to"; \
	done

screenshots: deps ## run check, diagnose, events and top beside faulty pods, and write their screens to docs/images
	@mkdir -p docs/images
	$(SUDO) env NODESKOOP_TEST_STRICT=1 NODESKOOP_SCREENSHOTS=$(CURDIR)/docs/images $(GO) test -count=1 -run '^TestScreenshots$$' ./cmd/nodeskoop

fuzz: go ## run each fuzz target for FUZZTIME
	@for p in $$($(GO) list $(FUZZ)); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
	    echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$p > build/fuzz.log 2>&1 || { cat build/fuzz.log; exit 1; }; \
	  done; \
	done

bench: deps ## measure one cycle over 1 to 500 namespaces, 50,000 sockets, and the encoder
	$(SUDO) env NODESKOOP_TEST_STRICT=1 $(GO) test -run '^$$' -bench . -benchtime $(BENCHTIME) -timeout 60m ./collect/... ./output/...

bench-bpf: deps ## measure the cost of the BPF programs: one run of each, and traffic with and without them
	$(SUDO) env NODESKOOP_TEST_STRICT=1 $(GO) test -run '^$$' -bench 'Cost|Programs' -benchtime 1x -timeout 30m ./bpf

bench-compare: deps ## compare the daemon's cost with node_exporter, bpftrace and libbpf-tools in one run (minutes)
	$(SUDO) internal/e2e/compare/tools
	$(SUDO) env NODESKOOP_TEST_STRICT=1 NODESKOOP_COMPARE=6 $(GO) test -count=1 -v -run TestCompare -timeout 60m ./internal/e2e/compare

bench-curves: deps ## measure how the cost of a cycle grows, up to 1,000 namespaces and 100,000 sockets (minutes)
	$(SUDO) env NODESKOOP_TEST_STRICT=1 NODESKOOP_CURVES=1 $(GO) test -count=1 -v -run TestCurves -timeout 30m ./internal/e2e/compare

bench-pods: deps ## run the daemon beside 0, 110 and 500 real pods: its CPU, memory and BPF programs, with profiles in build/profiles (20 minutes)
	$(SUDO) env NODESKOOP_TEST_STRICT=1 NODESKOOP_PROFILES=$(CURDIR)/build/profiles $(GO) test -run '^$$' -bench '^BenchmarkDaemon$$' -benchtime 1x -timeout 60m ./cmd/nodeskoop

# A whole run on a quiet machine becomes testdata/servers.tsv, of which make generate
# makes the tables in docs/.
bench-servers: deps ## measure what probes cost nginx, Redis, PostgreSQL and memcached, in PAIRS pairs of turns (100 minutes; SERVERS='Redis/GET/veth' or PROBES=all,flow for some)
	@.ci/deps servers
	@mkdir -p build
	$(SUDO) env NODESKOOP_TEST_STRICT=1 NODESKOOP_SERVERS=$(PAIRS) NODESKOOP_SERVERS_ONLY='$(SERVERS)' NODESKOOP_SERVERS_PROBES='$(PROBES)' \
	  NODESKOOP_SERVERS_OUT=$(CURDIR)/build/servers.tsv $(GO) test -count=1 -v -timeout 0 -run '^TestServers$$' ./bpf
	@$(GO) run ./internal/testkit/servers/table build/servers.tsv
	@$(GO) run ./internal/testkit/servers/table -alone build/servers.tsv

bench-gate: deps ## check cost ratios, to baselines of the same run, against testdata/budgets.tsv
	@.ci/deps servers
	$(SUDO) env NODESKOOP_TEST_STRICT=1 NODESKOOP_GATE=1 $(GO) test -count=1 -v -run TestGate -timeout 10m ./internal/e2e/compare

soak: deps ## run the daemon for DURATION while other services restart; resources must not accumulate
	$(SUDO) env NODESKOOP_TEST_STRICT=1 NODESKOOP_SOAK=$(DURATION) $(GO) test -count=1 -v -run TestSoak -timeout 0 ./internal/e2e/soak

packages: go ## build the deb and rpm packages for amd64 and arm64 into build/packages
	VERSION='$(VERSION)' packaging/build-packages

check-packages: deps ## build the packages twice and compare them; run lintian, rpmlint and systemd-analyze security
	VERSION='$(VERSION)' packaging/check-packages

clean: ## remove build and .cache
	rm -rf build .cache
