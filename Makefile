# Spillway. `make` prints what there is; everything sets itself up on a machine
# with Go and a C compiler (for the race detector).

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO            ?= go
BIN           := bin/spillway
LINT_VERSION  := v2.15.0
LINT          := .cache/bin/golangci-lint-$(LINT_VERSION)
FUZZ_TIME     ?= 10s
DEMO_FLAGS    ?=
BENCH_PROXY_FLAGS ?=
SOAK_FLAGS    ?=
GO_FILES      = $(shell git ls-files --cached --others --exclude-standard '*.go')

.PHONY: help
help: ## print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: build ## the main job on this machine: four simulated servers, one is killed (DEMO_FLAGS=--fast)
	$(BIN) demo $(DEMO_FLAGS)

.PHONY: build
build: ## build bin/spillway
	CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN) ./cmd/spillway

.PHONY: test
test: deps ## all tests; says which did not run (CI=true: that is a failure)
	tools/test.sh

.PHONY: deps
deps: ## what the tests need: modules, servers, SDKs (builds Consul and the API server of Kubernetes once: 10 minutes)
	tools/deps.sh

.PHONY: check
check: format vet lint docs-check test fuzz-seeds ## what CI runs

.PHONY: format
format: ## fail on files that gofmt would change
	@unformatted=$$(gofmt -l $(GO_FILES)); if [ -n "$$unformatted" ]; then echo "run make fmt:"; echo "$$unformatted"; exit 1; fi

.PHONY: fmt
fmt: ## format the code
	gofmt -w $(GO_FILES)

.PHONY: vet
vet: ## go vet
	$(GO) vet ./...

.PHONY: lint
lint: $(LINT) ## golangci-lint, built once into .cache
	$(LINT) run ./...

$(LINT):
	@mkdir -p $(@D)
	GOBIN=$(CURDIR)/.cache/bin $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)
	mv .cache/bin/golangci-lint $@

.PHONY: docs
docs: ## write the generated pages of docs/ again
	$(GO) test ./internal/archtest -count=1 -run 'TestGeneratedPagesAreFresh' -update

.PHONY: docs-check
docs-check: ## rules on the code, generated pages, examples and links
	$(GO) test ./internal/archtest

.PHONY: fuzz-seeds
fuzz-seeds: ## run every fuzz target on its seeds
	$(GO) test -run '^Fuzz' ./...

.PHONY: fuzz
fuzz: ## fuzz every target for FUZZ_TIME (10s)
	tools/fuzz.sh $(FUZZ_TIME)

.PHONY: bench-faults
bench-faults: build ## kill, hang, streams, reload, leave: a verdict for each requirement (about 3 minutes)
	@failed=0; for s in kill hang streams reload leave; do $(BIN) bench $$s || failed=1; done; exit $$failed

.PHONY: bench-discovery
bench-discovery: build ## a hundred instances come and go in a real Consul and a real Kubernetes API server, under load (2 minutes; make deps first)
	@failed=0; for s in consul kubernetes; do $(BIN) bench discovery --source $$s || failed=1; done; exit $$failed

.PHONY: soak
soak: build ## 100,000 fault-free streams, none broken (about 2 minutes; SOAK_FLAGS='--count 20000')
	$(BIN) bench soak $(SOAK_FLAGS)

OVERLOAD_FLAGS ?=

.PHONY: bench-overload
bench-overload: build ## overload in virtual time: all systems and all scenarios (about 5 minutes; OVERLOAD_FLAGS='--seeds 2')
	@failed=0; $(BIN) bench overload --virtual --load 0.8,1.2,2,3,5,10 --systems all $(OVERLOAD_FLAGS) || failed=1; \
	$(BIN) bench overload --virtual --scenario all $(OVERLOAD_FLAGS) || failed=1; exit $$failed

.PHONY: bench-overload-day
bench-overload-day: build ## 24 hours at three times the capacity, in virtual time (about 3 minutes)
	$(BIN) bench overload --virtual --scenario E12 $(OVERLOAD_FLAGS)

.PHONY: bench-overload-real
bench-overload-real: build ## overload with real processes over HTTP (OVERLOAD_FLAGS='--load 2 --systems all')
	$(BIN) bench overload $(OVERLOAD_FLAGS)

.PHONY: bench-overload-docs
bench-overload-docs: build ## write tables and plots of docs/overload.md from runs in virtual time
	@failed=0; $(BIN) bench overload --virtual --load 0.8,1.2,2,3,5,10 --systems all --docs docs $(OVERLOAD_FLAGS) || failed=1; \
	$(BIN) bench overload --virtual --scenario all --docs docs $(OVERLOAD_FLAGS) || failed=1; exit $$failed

HEADLINE_FLAGS ?=

.PHONY: bench-headline
bench-headline: build ## the headline: straight and through the gateway, and without each part (about 26 minutes; HEADLINE_FLAGS=--fast: 6)
	$(BIN) bench headline $(HEADLINE_FLAGS)

.PHONY: bench-cache
bench-cache: build ## what hits cost, a thousand twins, and hits in trace time (about 1 minute)
	@failed=0; $(BIN) bench cache || failed=1; $(BIN) bench herd || failed=1; $(BIN) bench cache --trace || failed=1; exit $$failed

.PHONY: bench
bench: ## Go benchmarks
	$(GO) test -run '^$$' -bench . -benchmem ./internal/...

.PHONY: bench-proxy
bench-proxy: ## cost against nginx and HAProxy (BENCH_PROXY_FLAGS='-rounds 3')
	$(GO) run ./bench/proxy $(BENCH_PROXY_FLAGS)

.PHONY: clean
clean: ## remove what was built; the caches of Go stay
	rm -rf bin dist .cache
