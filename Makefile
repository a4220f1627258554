# syncd: build, show, test. `make help` lists the targets.

GO      ?= go
PREFIX  ?= /usr
DESTDIR ?=
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)

export GOFLAGS = -buildvcs=false
LDFLAGS := -s -w -X main.release=$(VERSION)

.PHONY: help build demo test peers lint bench bench-peer bench-commit bench-failover bench-held install clean

help:        ## this list
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  *##' Makefile | sed -E 's/:.*##/\t/' | expand -t 16

build:       ## the program, bin/syncd
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/syncd ./cmd/syncd

demo: build  ## two firewalls on this machine, one is killed, the connections live (needs root)
	bin/syncd demo

test: peers lint  ## every test; as root also those on real kernels and against real peers
	test/run

# The peers of the end-to-end tests. Where they cannot be installed, the tests that
# need them are skipped and named.
peers:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then test/peers; \
	else echo "not root, or no apt-get: tests that need conntrackd, conntrack or keepalived may be skipped"; fi

lint:        ## gofmt, go vet, staticcheck
	@bad=$$(gofmt -l cmd internal test); if [ -n "$$bad" ]; then echo "gofmt would change: $$bad"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

bench:       ## micro-benchmarks
	$(GO) test -run '^$$' -bench . -benchmem ./internal/...

bench-peer: build peers ## syncd and conntrackd by turns under the same load: some 10 minutes, as root
	$(GO) run ./test/bench/peer -syncd bin/syncd -json bench-peer.json

bench-commit: build peers ## commit and dump of 1 k to 1 M flows, syncd and conntrackd by turns: some 10 minutes, as root
	$(GO) run ./test/bench/commit -syncd bin/syncd -json bench-commit.json

bench-failover: build peers ## death of the active node and cut of the link, syncd and conntrackd by turns: some 6 minutes, as root
	$(GO) run ./test/bench/failover -syncd bin/syncd -json bench-failover.json

bench-held: build peers ## the highest rate held with 40 % of a processor each, and without a limit: some 5 minutes, as root
	$(GO) run ./test/bench/peer -syncd bin/syncd -held 0.4,0 -runs 1 -duration 3s -json bench-held.json

install: build  ## program, unit, sysctl and example configuration below DESTDIR
	install -D -m 0755 bin/syncd $(DESTDIR)$(PREFIX)/sbin/syncd
	install -D -m 0644 deploy/systemd/syncd.service $(DESTDIR)$(PREFIX)/lib/systemd/system/syncd.service
	install -D -m 0644 deploy/sysctl.d/60-syncd.conf $(DESTDIR)$(PREFIX)/lib/sysctl.d/60-syncd.conf
	install -D -m 0644 deploy/modules-load.d/syncd.conf $(DESTDIR)$(PREFIX)/lib/modules-load.d/syncd.conf
	install -D -m 0644 configs/reference.toml $(DESTDIR)$(PREFIX)/share/doc/syncd/reference.toml
	[ -e $(DESTDIR)/etc/syncd/syncd.toml ] || install -D -m 0640 configs/syncd.toml $(DESTDIR)/etc/syncd/syncd.toml
	bin/syncd man --dir $(DESTDIR)$(PREFIX)/share/man/man8

clean:
	rm -rf bin dist
