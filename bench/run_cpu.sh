#!/usr/bin/env bash
# Measures this machine: one JSON line that names it, then one for every call that tallow bench
# has a name for (the BENCH rows of tests/cases.def).
#
#   bench/run_cpu.sh NAME [path of tallow]     writes bench/results/cpu-NAME.jsonl
#
# Use a Release build (cmake --preset release && cmake --build build/release) and an idle machine.
set -euo pipefail
cd "$(dirname "$0")/.."

name=${1:?"usage: bench/run_cpu.sh NAME [path of tallow]"}
tallow=${2:-build/release/cli/tallow}
result=bench/results/cpu-$name.jsonl

cpu=$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -1)
machine=$("$tallow" info --json)
printf '{"cpu":"%s","cores":%d,"date":"%s","tallow":%s}\n' \
    "${cpu:-$(uname -m)}" "$(nproc)" "$(date -u +%F)" "$machine" >"$result.part"
"$tallow" bench --list | while read -r call; do
    echo "$call" >&2
    "$tallow" bench --case "$call" --json >>"$result.part"
done
mv "$result.part" "$result"
echo "$result" >&2
