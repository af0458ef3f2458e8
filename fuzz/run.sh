#!/usr/bin/env bash
# Runs every target for FUZZ_SECONDS (60) over its corpus, four at a time. What fails is left in fuzz/artifacts.
#
# The flags are those of cargo-fuzz without a sanitizer, so that the usual compiler will do: our code is safe Rust, whose panics
# are what is looked for.
set -euo pipefail
cd "$(dirname "$0")"
host=$(rustc -vV | sed -n 's/^host: //p')
target=${CARGO_TARGET_DIR:-../target}/fuzz
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
 -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0"
# With a target named, scripts and macros of the build do not get them.
cargo build --release --locked --target "$host" --target-dir "$target"

run() {
  local name=$1 found=0
  mkdir -p "artifacts/$name" "$3/found/$name"
  # What is found while running stays out of the corpus.
  "$3/$2/release/$name" "$3/found/$name" "corpus/$name" -dict=dict.txt -max_total_time="$4" -seed="${FUZZ_SEED:-1}" -timeout=10 -rss_limit_mb=2048 \
    -artifact_prefix="artifacts/$name/" -print_final_stats=1 >"$3/$name.log" 2>&1 || found=$?
  printf 'fuzz %s: %s runs, coverage %s, %s\n' "$name" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$3/$name.log")" \
    "$(grep -o 'cov: [0-9]*' "$3/$name.log" | tail -1)" "$([ "$found" = 0 ] && echo nothing found || echo FAILED)"
  if [ "$found" != 0 ]; then
    tail -40 "$3/$name.log"
    return 1
  fi
}
export -f run
ls targets | sed 's/\.rs$//' | xargs -P 4 -I{} bash -c 'run "$@"' run {} "$host" "$target" "${FUZZ_SECONDS:-60}"
