# nodeskoop. `make help` lists what can be made.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
export PATH := $(CURDIR)/.cache/tools/usr/bin:$(PATH):/usr/local/go/bin:/usr/sbin:/sbin
export CGO_ENABLED ?= 0
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo --preserve-env=PATH,CGO_ENABLED,GOPATH,GOCACHE,GOPROXY,GOFLAGS)
GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
BENCHTIME ?= 1s
FUZZTIME ?= 20s
FUZZ ?= ./...
# The go tool's ... leaves out what lies below testdata.
PACKAGES := ./... ./testdata/need ./testdata/nsnet ./testdata/pods
SECONDS_TO_RUN ?=

.DEFAULT_GOAL := build
.PHONY: help build run demo bench-bpf test race lint generate check-metrics fuzz bench deps clean

help: ## print this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' Makefile

build: ## build build/nodeskoop
	@mkdir -p build
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o build/nodeskoop ./cmd/nodeskoop

run: build ## run the daemon here, with its textfile in build/run, and show the file being refreshed
	$(SUDO) packaging/run-here $(SECONDS_TO_RUN)

demo: ## cause some events, in namespaces of its own, for `make run` or `nodeskoop events` to see
	$(SUDO) packaging/demo

deps: ## install what the tests need (apt), unpack what would be a service (below .cache)
	@.ci/deps

# The packages' tests run one after another: what one causes in the kernel
# another would see.
test: deps ## run all tests, as root; fails on a test skipped without need
	@mkdir -p build
	$(GO) test -run '^$$' $(PACKAGES) > /dev/null # builds them side by side
	$(SUDO) env NODESKOOP_TEST_STRICT=1 $(GO) test -p 1 -count=1 -v -timeout 20m $(PACKAGES) > build/test.log 2>&1 \
	  || { grep -E '^(\s*--- FAIL|FAIL|panic:)|_test\.go:[0-9]+:' build/test.log | head -n 200; echo 'the whole output is in build/test.log'; exit 1; }
	@grep -E '^(ok|\?|---) ' build/test.log | grep -v '^--- PASS'
	@.ci/report-skips build/test.log

race: deps ## run the tests under the race detector (needs a C compiler)
	$(SUDO) env CGO_ENABLED=1 $(GO) test -p 1 -race -short -timeout 20m ./...

lint: ## go vet, staticcheck, shellcheck
	$(GO) vet $(PACKAGES)
	$(GO) tool -modfile=packaging/tools/go.mod staticcheck $(PACKAGES)
	shellcheck .ci/run .ci/deps .ci/report-skips .ci/check-bpf packaging/run-here packaging/update-readme packaging/demo

generate: build ## make the shipped configuration and the README's tables from the catalogue (BPF: go generate ./bpf)
	build/nodeskoop config --default > packaging/nodeskoop.toml
	packaging/update-readme

check-metrics: build deps ## sample this machine and hold the result against promtool
	$(SUDO) build/nodeskoop collect --config /dev/null > build/collect.prom
	promtool check metrics < build/collect.prom > build/promtool.out 2>&1 || true
	@if grep -vE 'counter metrics should have "_total" suffix' build/promtool.out | grep .; then exit 1; fi
	@echo "$$(grep -vc '^#' build/collect.prom) series, no remark but on _total"

fuzz: ## run each fuzz target for FUZZTIME
	@for p in $$($(GO) list $(FUZZ)); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
	    echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$p > build/fuzz.log 2>&1 || { cat build/fuzz.log; exit 1; }; \
	  done; \
	done

bench: deps ## measure one cycle over 1 to 500 namespaces, 50,000 sockets, and the encoder
	$(SUDO) env NODESKOOP_TEST_STRICT=1 $(GO) test -run '^$$' -bench . -benchtime $(BENCHTIME) -timeout 60m ./collect/... ./output/...

bench-bpf: deps ## measure what the BPF programs cost: a run of each, and traffic with and without
	$(SUDO) env NODESKOOP_TEST_STRICT=1 $(GO) test -run '^$$' -bench 'Cost|Programs' -benchtime 1x -timeout 30m ./bpf

clean: ## remove what was built
	rm -rf build .cache
