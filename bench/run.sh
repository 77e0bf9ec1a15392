#!/usr/bin/env bash
# Measures this machine's CPU or its first GPU: one JSON line that names the machine, then one for
# every call that tallow bench has a name for (the BENCH rows of tests/cases.def).
#
#   bench/run.sh cpu|cuda NAME [path of tallow]     writes bench/results/DEVICE-NAME.jsonl
#
# Use a Release build (cmake --preset release && cmake --build build/release) and an idle machine.
set -euo pipefail
cd "$(dirname "$0")/.."

usage="usage: bench/run.sh cpu|cuda NAME [path of tallow]"
device=${1:?"$usage"}
name=${2:?"$usage"}
tallow=${3:-build/release/cli/tallow}
result=bench/results/$device-$name.jsonl

cpu=$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -1)
machine=$("$tallow" info --json | sed -E 's/"(cache|pack)":"[^"]*",//g') # folders say nothing of speed
printf '{"cpu":"%s","cores":%d,"date":"%s","tallow":%s}\n' \
    "${cpu:-$(uname -m)}" "$(nproc)" "$(date -u +%F)" "$machine" >"$result.part"
"$tallow" bench --list | while read -r call; do
    echo "$call" >&2
    "$tallow" bench --device "$device" --case "$call" --json >>"$result.part"
done
mv "$result.part" "$result"
echo "$result" >&2
