#!/usr/bin/env bash
# Measures the first GPU of this machine: one JSON line that names machine and driver, then one for
# every call that tallow bench has a name for (the BENCH rows of tests/cases.def).
#
#   bench/run_cuda.sh NAME [path of tallow]     writes bench/results/cuda-NAME.jsonl
#
# Use a Release build (cmake --preset release && cmake --build build/release) and an idle GPU.
set -euo pipefail
cd "$(dirname "$0")/.."

name=${1:?"usage: bench/run_cuda.sh NAME [path of tallow]"}
tallow=${2:-build/release/cli/tallow}
result=bench/results/cuda-$name.jsonl

machine=$("$tallow" info --json)
printf '{"date":"%s","tallow":%s}\n' "$(date -u +%F)" "$machine" >"$result.part"
"$tallow" bench --list | while read -r call; do
    echo "$call" >&2
    "$tallow" bench --device cuda --case "$call" --json >>"$result.part"
done
mv "$result.part" "$result"
echo "$result" >&2
