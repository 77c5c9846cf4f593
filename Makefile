# make demo   show how a client gets a token through the redirect, in a few seconds
# make test   run the tests that need no image, no chart and no cluster, with the race detector
# make help   list all targets

SHELL := /bin/sh
export CGO_ENABLED ?= 0
# On Debian, ip, nft and iptables are in sbin, which is not in the PATH of a plain user.
export PATH := $(PATH):/usr/sbin:/sbin
# :=, so that a variable VERSION of the environment changes nothing.
VERSION := $(shell cat VERSION)
COMMIT := $(shell git describe --always --exclude='*' --abbrev=40 --dirty 2>/dev/null || echo unknown)
# -buildvcs=false: main.version names the commit, and a stamp would make builds of the same source differ.
BUILD := go build -trimpath -buildvcs=false -ldflags "-s -w -X 'main.version=$(VERSION) $(COMMIT)'"

.PHONY: help
help: ## list all targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/proxy and bin/proxy-init, static and stripped
	@[ -e bin/proxy ] || echo "compiling the proxy and proxy-init: about a minute the first time, seconds later"
	$(BUILD) -o bin/proxy ./cmd/proxy
	$(BUILD) -o bin/proxy-init ./cmd/proxy-init

.PHONY: build-migrate
build-migrate: ## build bin/imds-migrate, for your own machine
	$(BUILD) -o bin/imds-migrate ./cmd/imds-migrate

.PHONY: build-cni
build-cni: ## build bin/imds-cni, the CNI plugin and its installer
	$(BUILD) -o bin/imds-cni ./cmd/imds-cni

.PHONY: build-webhook
build-webhook: ## build bin/webhook, the admission webhook; one to two minutes the first time
	$(BUILD) -o bin/webhook ./cmd/webhook

# As root, the demo makes a network namespace with the redirect. Other users get one in a user
# namespace if the system allows that, or else the proxy on loopback. The demo prints what is
# missing for the namespace.
NEED_POD := if [ "$$(id -u)" = 0 ]; then tools/need curl ip; else tools/need curl; fi

# DEMO=--identity-binding shows a pod with an identity binding of AKS.
.PHONY: demo
demo: build ## show how one client gets one token through the redirect, step by step
	@$(NEED_POD)
	@go run ./test/demo $(DEMO)

.PHONY: dev
dev: build ## keep the demo running, with a shell inside for curl
	@$(NEED_POD)
	@go run ./test/demo --shell $(DEMO)

# Unpacked and not installed: Debian's package would start Prometheus.
NEED_PROMETHEUS := command -v promtool >/dev/null && command -v prometheus >/dev/null || tools/debs .cache/prometheus prometheus

.PHONY: attack
attack: ## measure what a hostile container can do to the others of its pod (root; part of test)
	@tools/need ip setpriv
	@echo "attacking the proxy in a memory cgroup of 64 MiB: about 4 minutes"
	go test -count=1 -timeout 20m -v ./test/attack

.PHONY: test
test: ## run all tests but test-images, test-chart, test-kernel, test-apiserver and test-cluster, with the race detector (root, for network namespaces)
	@tools/need curl gcc ip iptables-nft iptables-legacy nft setpriv unshare
	@tools/privileges
	@echo "compiling every package with the race detector: 5 to 10 minutes the first time, about one later"
	@# -count=1: some tests build the programs, and Go's test cache does not notice changes there.
	CGO_ENABLED=1 go test -race -count=1 -timeout 20m $$(go list ./... | grep -v /test/attack)
	@# Separately: other tests on the same cores would change the waiting times that it measures.
	@$(MAKE) --no-print-directory attack
	@$(NEED_PROMETHEUS)
	cd test/deploy/manifests && go test -count=1 ./... # Go's test cache does not notice changes outside of this module

# FUZZTIME is the time for each fuzz target: 20 seconds in CI, a minute nightly, an hour by hand (FUZZTIME=1h).
FUZZTIME ?= 60s
.PHONY: fuzz
fuzz: ## fuzz the parsers of untrusted input, each for FUZZTIME
	tools/fuzz $(FUZZTIME)

.PHONY: mutate
mutate: ## run mutation tests: which small faults do the tests detect? By hand and nightly (ONLY=internal/azure: one package)
	@tools/need ip unshare
	@tools/mutate $(ONLY)

.PHONY: lint
lint: ## run gofmt, go vet, staticcheck and misspell, and check imports, documentation and prose
	@test -z "$$(gofmt -l cmd internal test tools)" || { echo "gofmt -w:"; gofmt -l cmd internal test tools; exit 1; }
	go vet ./...
	go vet -tags images ./test/deploy/images
	go vet -tags chart ./test/deploy/chart
	go vet -tags kernel ./test/kernel
	cd test/deploy/manifests && go vet ./...
	cd test/cluster && go vet ./...
	cd tools/release && go vet ./...
	go tool -modfile=tools/go.mod staticcheck ./...
	go tool -modfile=tools/go.mod staticcheck -tags images ./test/deploy/images
	cd test/cluster && go tool -modfile=../../tools/go.mod staticcheck ./...
	cd tools/release && go tool -modfile=../go.mod staticcheck ./...
	go tool -modfile=tools/go.mod staticcheck -tags chart ./test/deploy/chart
	go tool -modfile=tools/go.mod staticcheck -tags kernel ./test/kernel
	@# verison, ouput: tests of suggestions for misspelled commands. hdinsight: a package of the Azure CLI.
	git ls-files | xargs go tool -modfile=tools/go.mod misspell -error -i verison,ouput,hdinsight
	go tool -modfile=tools/go.mod actionlint
	go test ./test/repo

.PHONY: version
version: ## write the version V (such as v1.2.3) into VERSION, every file that names it, and a heading of CHANGELOG.md
	@echo "$(V)" | grep -Eqx 'v[0-9]+\.[0-9]+\.[0-9]+(-[a-z0-9.]+)?' || { echo "V=$(V): must be like V=v1.2.3 or V=v1.2.3-rc.1" >&2; exit 2; }
	echo "$(V)" >VERSION
	go test -count=1 ./test/repo -run Version -update
	$(MAKE) chart

.PHONY: vuln
vuln: ## check what the programs call for known vulnerabilities (VULNDB=https://vuln.go.dev: the newest reports)
	@tools/vuln/run

# The programs and the archives are written by the Go version of releases: another one compresses differently.
# TOOLCHAIN=local and PLATFORMS=linux/amd64 make a snapshot cheaper.
RELEASE := cd tools/release && GOTOOLCHAIN=$(or $(TOOLCHAIN),$$(sed -n 's/^toolchain //p' ../../go.mod)) go run .

.PHONY: release
release: ## build everything of a release into dist/, without a daemon or a registry (SNAPSHOT=1: from any commit)
	@echo "compiling all programs for all platforms: about 10 minutes the first time"
	@$(RELEASE) $(if $(SNAPSHOT),--snapshot) --platforms="$(PLATFORMS)" --toolchain="$(TOOLCHAIN)" --registry="$(REGISTRY)"

.PHONY: push
push: ## push the images and the chart of dist/ to REGISTRY, such as registry.example.test/team (FORCE=1: replace tags)
	@[ -n "$(REGISTRY)" ] || { echo "REGISTRY is required, for example REGISTRY=registry.example.test/team" >&2; exit 2; }
	@$(RELEASE) --push="$(REGISTRY)" $(if $(FORCE),--force)

# The chart of dist/ names its images by digest, in REGISTRY. KUBECONFIG says where it is installed.
.PHONY: install
install: ## build a snapshot, push it to REGISTRY, and install the webhook with Helm for the tenant TENANT
	@[ -n "$(REGISTRY)" ] && [ -n "$(TENANT)" ] || { echo "REGISTRY and TENANT are required, for example REGISTRY=registry.example.test/team TENANT=11111111-2222-4333-8444-555555555555" >&2; exit 2; }
	@$(MAKE) --no-print-directory release SNAPSHOT=1
	@$(MAKE) --no-print-directory push
	go -C tools/helm tool helm upgrade --install --reset-then-reuse-values imds-oidc-proxy "$(CURDIR)/dist/imds-oidc-proxy-$(VERSION:v%=%).tgz" \
		--namespace imds-oidc-proxy --create-namespace --set tenantID="$(TENANT)" --wait $(HELM_FLAGS)

.PHONY: test-release
test-release: ## test the release tool and signatures, and that two clones give the same release (part of nightly)
	@# Cosign is built from source: 4 minutes the first time, then it is in Go's cache.
	cosign=$$(go -C tools/cosign tool -n cosign) && cd tools/release && COSIGN=$$cosign GOTOOLCHAIN=$$(sed -n 's/^toolchain //p' ../../go.mod) go test -count=1 ./...
	tools/twice

.PHONY: test-qemu
test-qemu: build ## run the demo with the proxy for arm64, by qemu (not part of test, but of CI)
	@$(NEED_POD)
	@tools/qemu

.PHONY: images
images: ## build the container images with docker, podman or buildah; tools/images says how to choose
	@IMAGES="$(IMAGES)" tools/images "$(VERSION)"

.PHONY: test-images
test-images: ## test the release tool, build the images on stand-in bases and those of a release, and run them (root; not part of test, but of CI)
	@tools/need buildah curl ip iptables-nft podman runc
	cd tools/release && go test -count=1 ./...
	go test -tags images -timeout 10m ./test/deploy/images

# Helm is built from source: two minutes the first time, then it is in Go's cache.
.PHONY: chart
chart: ## write Helm's output for charts/ (testdata, deploy/webhook/webhook.yaml) and the chart's README
	go test -count=1 -tags chart ./test/deploy/chart -update

.PHONY: test-chart
test-chart: ## run helm lint and helm template, and test which values the chart refuses (not part of test, but of CI)
	go test -count=1 -tags chart ./test/deploy/chart

# Ubuntu, for one, does not have this package.
HAS_DEBIAN_KERNEL := apt-cache show linux-image-amd64 >/dev/null 2>&1

.PHONY: test-kernel
test-kernel: ## test proxy-init on Debian's kernel without modules of nftables, in an emulated machine (part of nightly)
	@tools/need qemu-system-x86_64
	@$(HAS_DEBIAN_KERNEL) || { echo "test-kernel needs Debian's package linux-image-amd64, which is not in apt's lists: run it on Debian, after apt-get update" >&2; exit 1; }
	@tools/debs .cache/debian-kernel "$$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: //p')"
	go test -count=1 -tags kernel -v ./test/kernel

# Kubernetes is built from source: 5 to 10 minutes the first time, then it is in .cache.
# KUBERNETES=1.37.2 uses another version than test/cluster/kubernetes/go.mod.
.PHONY: test-apiserver
test-apiserver: ## test with a real Kubernetes API server and etcd (root, for namespaces)
	@tools/need ip
	@tools/kubernetes >/dev/null # here, since go test would not show its messages before the end
	@$(NEED_PROMETHEUS)
	cd test/cluster && go test -count=1 -timeout 30m ./apiserver

.PHONY: test-cluster
test-cluster: ## test with a real node as well: kubelet, containerd, runc, and pods that get tokens (root)
	@tools/need buildah ip npm python3-venv
	@tools/kubernetes >/dev/null # here, since go test would not show its messages before the end
	cd test/cluster && go test -count=1 -timeout 30m ./node

.PHONY: docs
docs: ## write the generated parts of docs/ from the programs
	go test ./test/repo -run 'Configuration|Injection|ChartValues' -update
	go test ./cmd/webhook -run DocumentedFlags -update

.PHONY: bench
bench: build ## measure speed and memory, as ratios within one run
	go run ./test/bench

# PODS is the number of pods of each form. With the default it takes 10 minutes.
PODS ?= 16
.PHONY: bench-pod
bench-pod: ## measure what injection costs the start of a pod, on the node of test-cluster (root; PODS=48: more pods)
	@tools/need buildah ip
	@tools/kubernetes >/dev/null # here, since go run would not show its messages before the end
	cd test/cluster && nice -n -15 go run ./podstart -n $(PODS) # other work on the machine would change the times

.PHONY: bench-plan
bench-plan: ## measure imds-migrate plan with 5,000 workloads on the API server of test-apiserver, about 10 minutes (root)
	@tools/need ip
	@tools/kubernetes >/dev/null # here, since go run would not show its messages before the end
	cd test/cluster && go run ./planscale

.PHONY: compat
compat: ## run real clients, old and new, against the proxy (root; ONLY=python: one family, ONLY=python/msal: one library)
	@go run ./test/compat --only="$(ONLY)"

# The newest minor version of Kubernetes, for the cluster tests. CI tests the one before.
.PHONY: nightly
nightly: export KUBERNETES ?= 1.37.2
nightly: ## run compat, the cluster tests, bench-pod and bench-plan on a newer Kubernetes, fuzz, mutate, test-release and test-kernel (skipped without Debian): hours, not part of CI
	@echo "nightly 1/8: make compat"
	$(MAKE) compat ONLY=
	@echo "nightly 2/8: make test-apiserver test-cluster, on Kubernetes $(KUBERNETES)"
	$(MAKE) test-apiserver test-cluster
	@echo "nightly 3/8: make bench-pod, on Kubernetes $(KUBERNETES)"
	$(MAKE) bench-pod
	@echo "nightly 4/8: make bench-plan, on Kubernetes $(KUBERNETES)"
	$(MAKE) bench-plan
	@echo "nightly 5/8: make fuzz"
	$(MAKE) fuzz
	@echo "nightly 6/8: make mutate"
	$(MAKE) mutate
	@echo "nightly 7/8: make test-release"
	$(MAKE) test-release
	@echo "nightly 8/8: make test-kernel"
	@if $(HAS_DEBIAN_KERNEL); then $(MAKE) test-kernel; else echo "::warning::SKIPPED: make test-kernel needs Debian, for its package linux-image-amd64"; fi

.PHONY: clean
clean: ## remove bin
	rm -rf bin
