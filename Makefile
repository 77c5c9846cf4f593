# make demo   the whole story, in a few seconds
# make test   every test that needs no image, no chart and no cluster, with the race detector
# make help   the rest

SHELL := /bin/sh
export CGO_ENABLED ?= 0
# Debian keeps ip and iptables where a plain user does not look.
export PATH := $(PATH):/usr/sbin:/sbin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
# -buildvcs=false: the version says which commit; the stamp would make builds of the same source differ.
BUILD := go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$(VERSION)"

.PHONY: help
help: ## say what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## bin/proxy and bin/proxy-init, static and stripped
	@[ -e bin/proxy ] || echo "compiling the proxy and proxy-init: about a minute the first time, seconds later"
	$(BUILD) -o bin/proxy ./cmd/proxy
	$(BUILD) -o bin/proxy-init ./cmd/proxy-init

.PHONY: build-migrate
build-migrate: ## bin/imds-migrate, for your own machine
	$(BUILD) -o bin/imds-migrate ./cmd/imds-migrate

.PHONY: build-webhook
build-webhook: ## bin/webhook, the admission webhook; the first time takes a minute or two
	$(BUILD) -o bin/webhook ./cmd/webhook

# As root the demo gets a network namespace with the redirect. Others get that in a
# user namespace where they can, or the proxy on loopback: what is missing for the
# namespace the demo says itself.
NEED_POD := if [ "$$(id -u)" = 0 ]; then tools/need curl ip iptables-nft; else tools/need curl; fi

.PHONY: demo
demo: build ## one client, one redirect, one token, and how each step came about
	@$(NEED_POD)
	@go run ./test/demo

.PHONY: dev
dev: build ## the demo left running, with a shell inside for curl
	@$(NEED_POD)
	@go run ./test/demo --shell

# Unpacked and not installed: Debian's package would start a Prometheus.
NEED_PROMTOOL := command -v promtool >/dev/null || tools/debs .cache/prometheus prometheus

.PHONY: attack
attack: ## what a hostile container of the pod can do to the others, as a table (root; part of test)
	@tools/need ip iptables-nft setpriv
	@echo "attacking the proxy in a memory cgroup of 64 MiB: about 4 minutes"
	go test -count=1 -timeout 20m -v ./test/attack

.PHONY: test
test: ## every test but test-images, test-chart, test-apiserver and test-cluster, with the race detector (root: they make network namespaces)
	@tools/need curl gcc ip iptables-nft iptables-legacy nft setpriv unshare
	@tools/privileges
	@echo "compiling every package with the race detector: 5 to 10 minutes the first time, about one later"
	@# -count=1: some tests build the programs, of which Go's cache of results knows nothing.
	CGO_ENABLED=1 go test -race -count=1 -timeout 20m $$(go list ./... | grep -v /test/attack)
	@# Alone: it measures how long a client waits, which other tests on the same cores would change.
	@$(MAKE) --no-print-directory attack
	@$(NEED_PROMTOOL)
	cd test/deploy/manifests && go test -count=1 ./... # what it reads is outside its module, where Go's cache does not look

# Each target once, for FUZZTIME: a minute in CI, an hour by hand (FUZZTIME=1h).
FUZZTIME ?= 60s
.PHONY: fuzz
fuzz: ## fuzz what parses hostile bytes, FUZZTIME each
	tools/fuzz $(FUZZTIME)

.PHONY: mutate
mutate: ## mutation tests: how many small faults the tests detect, by hand and nightly (ONLY=internal/azure: a part)
	@tools/need ip unshare
	@tools/mutate $(ONLY)

.PHONY: lint
lint: ## gofmt, go vet, staticcheck, the import map
	@test -z "$$(gofmt -l cmd internal test)" || { echo "gofmt -w:"; gofmt -l cmd internal test; exit 1; }
	go vet ./...
	go vet -tags images ./test/deploy/images
	go vet -tags chart ./test/deploy/chart
	cd test/deploy/manifests && go vet ./...
	cd test/cluster && go vet ./...
	go tool -modfile=tools/go.mod staticcheck ./...
	go tool -modfile=tools/go.mod staticcheck -tags images ./test/deploy/images
	cd test/cluster && go tool -modfile=../../tools/go.mod staticcheck ./...
	go tool -modfile=tools/go.mod staticcheck -tags chart ./test/deploy/chart
	go test ./test/repo

.PHONY: images
images: ## container images, by docker, podman or buildah; tools/images says how to choose
	@IMAGES="$(IMAGES)" tools/images "$(VERSION)"

.PHONY: test-images
test-images: ## not part of test, CI runs both: build the images on stand-in bases, and run them (root)
	@tools/need buildah curl ip iptables-nft podman runc
	go test -tags images -timeout 10m ./test/deploy/images

# Helm is built from source the first time: two minutes, kept in Go's cache.
.PHONY: chart
chart: ## write what Helm makes of charts/, deploy/webhook/webhook.yaml among it, and the chart's README
	go test -count=1 -tags chart ./test/deploy/chart -update

.PHONY: test-chart
test-chart: ## not part of test, CI runs both: helm lint, helm template, what the chart refuses
	go test -count=1 -tags chart ./test/deploy/chart

# Kubernetes is built from source the first time: 5 to 10 minutes, kept in .cache.
# KUBERNETES=1.37.2 takes another version than test/cluster/kubernetes/go.mod's.
.PHONY: test-apiserver
test-apiserver: ## a real Kubernetes API server, with etcd (root: in namespaces)
	@tools/need ip
	@tools/kubernetes >/dev/null # go test would show only at its end that this takes so long
	cd test/cluster && go test -count=1 -timeout 30m ./apiserver

.PHONY: test-cluster
test-cluster: ## a real node beside it: kubelet, containerd, runc; pods that get tokens
	@tools/need buildah ip npm
	@tools/kubernetes >/dev/null # go test would show only at its end that this takes so long
	cd test/cluster && go test -count=1 -timeout 30m ./node

.PHONY: docs
docs: ## write into docs/ what the programs say of themselves
	go test ./test/repo -run 'Configuration|Injection|ChartValues' -update
	go test ./cmd/webhook -run DocumentedFlags -update

.PHONY: bench
bench: build ## speed and memory, as ratios measured in one run
	go run ./test/bench

.PHONY: compat
compat: ## every client, old and new, against the proxy, as root (ONLY=python: a part)
	@go run ./test/compat --only="$(ONLY)"

# The cluster tests' second Kubernetes: the newest minor, where CI tests the one before.
.PHONY: nightly
nightly: export KUBERNETES ?= 1.37.2
nightly: ## not part of CI, takes hours: all clients, the cluster tests on a newer Kubernetes, mutation tests
	@echo "nightly 1/3: make compat, every client in every version"
	$(MAKE) compat ONLY=
	@echo "nightly 2/3: make test-apiserver test-cluster, on Kubernetes $(KUBERNETES)"
	$(MAKE) test-apiserver test-cluster
	@echo "nightly 3/3: make mutate, the tests against changed code"
	$(MAKE) mutate

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
