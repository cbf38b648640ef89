# Every target installs what it needs by itself; on Debian 12, as root, with Rust present.
# Test images are made of Debian's own packages, hosts are network namespaces.

BUILD_PACKAGES = gcc libc6-dev protobuf-compiler
RUN_PACKAGES   = containerd runc iproute2 nftables util-linux
TEST_PACKAGES  = busybox-static docker-registry openssl procps
BENCH_PACKAGES = etcd-server

.PHONY: build release test check lint docs simulate demo soak bench clean

build: packages-build
	cargo build --workspace --all-targets

release: packages-build
	cargo build --release -p blixard-cli

# Everything that must hold: formatting, lints, documentation, unit, simulated and real tests.
test: packages-build packages-run packages-test
	scripts/run-tests

lint: packages-build
	cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings

docs: packages-build
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

simulate: packages-build
	cargo run -p simulation --release -- run --seed 1

# The main job, end to end, on three hosts of this machine: see tests/src/bin/demo.rs.
demo: packages-build packages-run packages-test
	cargo build --release -p blixard-cli -p blixard-tests
	target/release/demo

# Two minutes of requests to a service while everything is done to it that a user does.
soak: packages-build packages-run packages-test
	cargo build --release -p blixard-cli -p blixard-tests
	target/release/soak

bench: packages-build packages-run packages-test packages-bench
	cargo build --release -p blixard-cli -p blixard-tests
	target/release/bench

packages-build: ; @scripts/install-packages $(BUILD_PACKAGES)
packages-run:   ; @scripts/install-packages $(RUN_PACKAGES)
packages-test:  ; @scripts/install-packages $(TEST_PACKAGES)
packages-bench: ; @scripts/install-packages $(BENCH_PACKAGES)

clean:
	cargo clean
