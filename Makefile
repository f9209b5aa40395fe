# Magnetar: see README.md. Each target says what it does; the work is done by what it calls.
.DEFAULT_GOAL := build
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

OUT := out
PREFIX ?= /usr/local
HANDLER ?= magnetar-runc
# The newer of the two containerds in the node.
NEWER := /opt/containerd-next/bin
TARGET := $(shell rustc -vV | sed -n 's/^host: //p')
CARGO_TARGET ?= $(or $(CARGO_TARGET_DIR),target)
BINARIES := containerd-shim-magnetar-v2 magnetar-runc magnetar-wasm magnetar-vmm magnetar-vm-agent magnetar-guest-image
KINDS := runc wasmtime wasmedge qemu clh
# What a microVM boots, from the agent and by our tool for it.
GUEST := $(CARGO_TARGET)/$(TARGET)/release/vm-agent $(CARGO_TARGET)/$(TARGET)/release/guest-image
# The guest with a kernel of our own, if there is one.
OWN_GUEST := $(OUT)/share/magnetar/guest-own
export CARGO_TERM_COLOR ?= never

.PHONY: build clippy install deps kernel demo demo-llm llm-clients test test-unit test-e2e test-vm soak fuzz conformance wasi-testsuite bench node kubernetes test-kubernetes examples lint doc clean

deps: ## what building needs and a fresh machine lacks, and third-party crates that another checkout has compiled
	@images/host-packages
	@images/crates restore

build: deps ## all binaries and configuration, as an install prefix in out/
	cargo build --release --locked --no-default-features $(addprefix -p ,$(BINARIES))
	wasm/cargo-engines build
	@install -Dm755 -t $(OUT)/bin $(CARGO_TARGET)/$(TARGET)/release/containerd-shim-magnetar-v2
	@# A name for each kind, for clients that name a runtime and have no handlers:
	@# io.containerd.magnetar-qemu.v2.
	@for kind in $(KINDS); do ln -sfn containerd-shim-magnetar-v2 $(OUT)/bin/containerd-shim-magnetar-$$kind-v2; done
	@install -Dm755 -t $(OUT)/libexec/magnetar $(CARGO_TARGET)/$(TARGET)/release/magnetar-{runc,maker,wasm,vmm}
	@install -Dm755 -t $(OUT)/libexec/magnetar $(CARGO_TARGET)/$(TARGET)/engine/magnetar-{wasmtime,wasmtime-compiler,wasmedge}
	@images/guest/build $(OUT)/share/magnetar/guest $(GUEST)
	@[ ! -f $(OWN_GUEST)/vmlinux ] || images/host-packages --kernel
	@[ ! -f $(OWN_GUEST)/vmlinux ] || images/guest/build --own-kernel $(OWN_GUEST) $(GUEST)
	@install -Dm644 -t $(OUT)/etc/magnetar shim/etc/magnetar/*.toml
	@install -Dm644 -t $(OUT)/etc/containerd/conf.d shim/etc/containerd/conf.d/magnetar.toml
	@install -Dm644 -t $(OUT)/etc/kubernetes shim/etc/kubernetes/runtimeclasses.yaml
	@install -Dm644 -t $(OUT)/share/magnetar LICENSE
	@install -Dm644 -t $(OUT)/share/magnetar/systemd shim/etc/systemd/magnetar.service

install: build ## copies out/ to PREFIX, and its etc/ to DESTDIR/etc
	cp -a $(OUT)/bin $(OUT)/libexec $(OUT)/share -t $(DESTDIR)$(PREFIX)
	cp -a $(OUT)/etc -t $(DESTDIR)/
	sed -i 's|=/usr/local/|=$(abspath $(PREFIX))/|' $(DESTDIR)$(PREFIX)/share/magnetar/systemd/magnetar.service

kernel: build ## a second kernel for microVMs, compiled with a minimal configuration: out/share/magnetar/guest-own
	@images/host-packages --kernel
	@images/guest/build --own-kernel $(OWN_GUEST) $(GUEST)

demo: deps ## a pod of every kind, in a node of its own
	@# The node is made while the compiler runs: that is mostly waiting for downloads. If it fails, the
	@# run makes it once more, and says why it fails.
	@images/node/node build & $(MAKE) --no-print-directory build && { wait $$! || true; } && tests/demo/run

demo-llm: deps ## a language model served from a Wasm module, with each engine, beside llama.cpp's own server
	@images/node/node build & $(MAKE) --no-print-directory build && { wait $$! || true; } && tests/demo/llm

test: ## everything CI runs
	@tests/run

test-unit: deps
	cargo test --workspace --locked

test-e2e: build
	@tests/e2e/run --handler $(HANDLER)

test-vm: build ## the end-to-end tests in full, in the node as a virtual machine (cgroup v2)
	@tests/e2e/run --vm --handler $(HANDLER)

soak: build ## pods come and go, some of them killed, and nothing stays: MAGNETAR_SOAK_PODS=60 MAGNETAR_SOAK_AT_ONCE=1 and more (tests/e2e/tests/soak.rs)
	@tests/e2e/run --soak --handler $(HANDLER)

fuzz: deps ## fuzzes what reads the words of others, an hour for each target (tests/fuzz): needs a nightly compiler
	@tests/fuzz/run --full

conformance: build ## critest and containerd's own integration suite against HANDLER, compared with containerd's own runc handler: cgroup v1, then v2 in a virtual machine
	@for node in '' '--containerd $(NEWER)' '--vm --containerd $(NEWER)'; do \
		tests/conformance/run $$node $(HANDLER) || [ $$? = 77 ]; \
	done
	@tests/conformance/integration $(HANDLER) || [ $$? = 77 ]
	@tests/conformance/wasi-testsuite || [ $$? = 77 ]

wasi-testsuite: build ## WebAssembly's suite for WASI in pods of both Wasm engines: WASI_TESTSUITE=DIR, a checkout of its branch prod/testsuite-base
	@tests/conformance/wasi-testsuite || [ $$? = 77 ]

llm-clients: build ## OpenAI's Python client, and the chat page in Chromium, against the inference server in a pod of each Wasm engine
	@tests/llm-clients/run || [ $$? = 77 ]

bench: build ## side by side with containerd's own runc shim
	@tests/bench/run

node: build ## a shell in the node, with containerd up and crictl at hand
	@images/node/node build
	@images/node/node start
	@images/node/node shell; images/node/node stop

test-kubernetes: build ## pods of all kinds as a kubelet drives them, in full
	@tests/kube/run

kubernetes: build ## a shell with kubectl in a node that is a cluster, with RuntimeClasses of all kinds; runs what it gets on standard input, where that is no terminal
	@tests/kubernetes/run

examples: deps ## the examples in Rust, by Debian's rustc: components, a module and their images, in target/wasm-examples
	cargo build --locked --package magnetar-componentize
	@images/builder/build target/wasm-examples $(CARGO_TARGET)/$(TARGET)/debug/componentize

lint: clippy doc ## all that is checked without running our code: format, warnings, documentation, dependencies that nobody uses, scripts
	cargo fmt --all --check
	@tests/unused
	@tests/scripts || [ $$? = 77 ]

clippy: deps ## no warnings, in all that is compiled
	wasm/cargo-engines clippy --quiet -- -D warnings

doc: deps ## the documentation of our crates, without warnings
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' wasm/cargo-engines doc --quiet

clean:
	cargo clean
	rm -rf $(OUT)
