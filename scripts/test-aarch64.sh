#!/bin/sh
# Builds the CPU kernels for aarch64 and runs their tests in an emulator, on an x86-64 Debian.
#
#     scripts/test-aarch64.sh [arguments of cargo test]
#
# Needs cargo, and these packages of Debian, which are installed when this runs as root and named
# otherwise: the compiler rustc-web with the arm64 standard library beside it, a cross linker and
# its C library, and qemu-user. The compiler must be as new as `rust-version` in Cargo.toml asks;
# cargo says so if it is not.
set -eu
cd "$(dirname "$0")/.."

packages="rustc-web libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"
missing=""
for package in $packages; do
    state=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [ "$state" = "install ok installed" ] || missing="$missing $package"
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "missing packages; as root: dpkg --add-architecture arm64 && apt-get update &&" \
            "apt-get install -y --no-install-recommends$missing" >&2
        exit 1
    fi
    dpkg --add-architecture arm64
    apt-get update -q
    # Word splitting is meant: one argument per package.
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
fi

# The package's compiler, whatever other one is on the path.
export RUSTC=/usr/bin/rustc
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target/aarch64}"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
# The library path keeps loader and C library of one package together: the loader of the cross
# package hangs in the first thread it starts with the C library of libc6:arm64.
root=/usr/aarch64-linux-gnu
runner="qemu-aarch64 -cpu max -L $root -E LD_LIBRARY_PATH=$root/lib"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$runner"
# Emulated vectors are slow: codegen-cpu/tests/dense/support.rs says what is run through less often.
export AETHER_TEST_SIZES="${AETHER_TEST_SIZES:-emulated}"
# A test fails if the emulator lacks what the NEON kernels need.
export AETHER_ISA=neon
# The kernels are optimised; what they depend on need not be, and compiles in half the time.
exec cargo test -p aether-codegen-cpu --lib --test '*' --target aarch64-unknown-linux-gnu --locked \
    --config 'profile.dev.package."*".opt-level=0' "$@"
