# taskgate. `make help` says what there is.
SPIFFE ?= dev
S3     ?= versitygw
NODE   ?= kwok
DIR    ?= .testbed
# A kubeconfig counts only when it is given to make itself: make imports the
# variable of the same name from the environment.
ifeq ($(origin KUBECONFIG),command line)
CLUSTER := --kubeconfig $(abspath $(KUBECONFIG))
endif
FUZZTIME ?= 5s
TESTBED   = cd e2e && go run ./cmd/testbed

help: ## Say what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

build: ## Build sidecar, broker and taskgate into bin/
	CGO_ENABLED=0 go build -trimpath -o bin/ ./cmd/...

images: build ## Build container images into bin/images, without a container engine, and print their digests
	cd e2e && go run ./cmd/images ../bin ../bin/images

test: lint arch unit fuzz e2e ## Everything CI runs; builds what it needs the first time (about 25 minutes), then under 15

# For make e2e, and for make up when it is to start a real node.
PACKAGES = runc containernetworking-plugins iproute2 busybox-static
packages: ## Install what NODE=real needs
	@for p in runc ip busybox /usr/lib/cni/bridge; do command -v $$p >/dev/null || { apt-get update -q && apt-get install -qy --no-install-recommends $(PACKAGES) || exit 1; break; }; done

compiler: # the race detector and SPIRE's database need a C compiler
	@command -v gcc >/dev/null || { apt-get update -q && apt-get install -qy --no-install-recommends gcc libc6-dev; }

unit: compiler ## Unit tests, with the race detector; what things cost is looked at without it
	go test -race -shuffle=on ./...
	go test -run 'Memory|Cost|KeepNobodyOut' ./broker/... ./recorder ./sidecar

e2e: tools packages ## End-to-end tests: real API server, real SPIRE, real S3 with object lock
	cd e2e && go test -parallel 6 -timeout 30m ./...

# A deadline without a failing input is go test's own, not the target's: go.dev/issue/75804, mended in Go 1.27.
fuzz: ## Each fuzz target for FUZZTIME (5s)
	@set -e; log=$$(mktemp); trap "rm -f $$log" EXIT; go list ./... | while read -r package; do \
	  go test -list '^Fuzz' "$$package" | grep '^Fuzz' | while read -r target; do \
	    echo "fuzz $$package $$target"; go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) "$$package" >$$log 2>&1 || \
	      { grep -q '^ *context deadline exceeded$$' $$log && ! grep -q 'Failing input' $$log; } || { cat $$log; exit 1; }; \
	  done || exit 1; done

lint: ## gofmt, go vet and staticcheck over all modules
	@test -z "$$(gofmt -l api authz broker cmd e2e identity internal recorder sidecar bench 2>/dev/null)" || { gofmt -d . | head -40; exit 1; }
	go vet ./...
	cd e2e && go vet ./...
	go tool -modfile=tools/go.mod staticcheck ./...
	cd e2e && go tool -modfile=../tools/go.mod staticcheck ./...

arch: ## Who may import whom, and how large things may become
	go test -count=1 ./internal/arch

generate: ## Deep copies and CRDs from api/
	go tool -modfile=tools/go.mod controller-gen object crd paths=./api/... output:crd:dir=manifests/crds

tools: compiler ## Build the real components once; they are kept outside the tree
	$(TESTBED) build

up: $(if $(filter real,$(NODE)),packages) ## Start a cluster, a store, brokers and two agents (SPIFFE=spire|dev S3=versitygw|minio NODE=kwok|real|none KUBECONFIG=...)
	$(TESTBED) up --dir $(abspath $(DIR)) --spiffe $(SPIFFE) --s3 $(S3) --node $(NODE) $(CLUSTER)

down: ## Stop it and leave nothing behind
	$(TESTBED) down --dir $(abspath $(DIR))

demo: ## See it work in two minutes, from the agent's first call to the auditor's proof
	cd e2e && go run ./cmd/demo --spiffe $(SPIFFE) --s3 $(S3) --node $(NODE)

dev: ## Start everything, leave it running, and say what to try
	cd e2e && go run ./cmd/demo --keep --dir $(abspath $(DIR)) --spiffe $(SPIFFE) --s3 $(S3) --node $(NODE)

bench: ## Measure against the direct path and a plain two-hop proxy, in one run
	cd e2e && go run ./cmd/bench

.PHONY: help build images test packages compiler unit e2e fuzz lint arch generate tools up down demo dev bench
