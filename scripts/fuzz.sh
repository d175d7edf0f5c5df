#!/usr/bin/env bash
# Runs a fuzz target with libFuzzer: scripts/fuzz.sh TARGET [SECONDS] [LIBFUZZER-OPTION...]
#
# Targets are the files of fuzz/fuzz_targets. The corpus grows in fuzz/corpus/TARGET from the seeds
# in the repository; findings are written to fuzz/artifacts/TARGET, and running the target's binary
# on such a file shows the finding again. Uses the nightly compiler if there is one, else the
# stable one with its unstable flags unlocked, so nothing need be installed.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:?which target? one of $(ls fuzz/fuzz_targets | sed 's/\.rs$//' | tr '\n' ' ')}
seconds=${2:-600}
shift $(($# < 2 ? $# : 2))

corpus=fuzz/corpus/$target
artifacts=fuzz/artifacts/$target
mkdir -p "$corpus" "$artifacts"
case $target in
parser | round_trip | pipeline)
  seeds=(ir/tests/parse ir/tests/verify tests/ir) options=(-dict=fuzz/aet.dict -max_len=4096) ;;
gguf | tokenizer) seeds=(llm/tests/data/gguf llm/tests/data/tokenizer) options=(-max_len=16384) ;;
*) seeds=() options=(-max_len=16384) ;;
esac
for folder in "${seeds[@]}" "fuzz/seeds/$target"; do
  if [ -d "$folder" ]; then
    find "$folder" -type f \( -name '*.aet' -o -name '*.gguf' -o -path 'fuzz/seeds/*' \) \
      -size -64k -exec cp -n {} "$corpus/" \;
  fi
done

host=$(rustc -vV | sed -n 's/^host: //p')
flags="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address -Cforce-frame-pointers=yes"
if rustup toolchain list 2>/dev/null | grep -q nightly; then
  cargo=(cargo +nightly)
else
  cargo=(cargo)
  export RUSTC_BOOTSTRAP=1
fi
# With a target triple the flags do not reach build scripts.
RUSTFLAGS="$flags" "${cargo[@]}" build --release --manifest-path fuzz/Cargo.toml \
  --target "$host" --target-dir "${CARGO_TARGET_DIR:-target}/fuzz" --bin "$target"
exec "${CARGO_TARGET_DIR:-target}/fuzz/$host/release/$target" \
  -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
  -artifact_prefix="$artifacts/" "${options[@]}" "$@" "$corpus"
