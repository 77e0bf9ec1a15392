#!/usr/bin/env bash
# Measures this machine: one JSON line that names it, then one for every call of the list below.
#
#   bench/run_cpu.sh NAME [path of tallow]      writes bench/results/cpu-NAME.jsonl
#
# Use a Release build (cmake --preset release && cmake --build build/release) and an idle machine.
set -euo pipefail
cd "$(dirname "$0")/.."

name=${1:?"usage: bench/run_cpu.sh NAME [path of tallow]"}
tallow=${2:-build/release/cli/tallow}
result=bench/results/cpu-$name.jsonl

# Prefill of growing length, decode over growing caches, then one feature or size changed at a time.
calls=(
    "--dtype bf16 --seqlen 1k"
    "--dtype bf16 --seqlen 4k"
    "--dtype bf16 --seqlen 16k"
    "--dtype f16 --seqlen 4k"
    "--dtype f32 --seqlen 4k"
    "--dtype bf16 --seqlen 1 --seqlen-k 4k"
    "--dtype bf16 --seqlen 1 --seqlen-k 32k"
    "--dtype f16 --seqlen 1 --seqlen-k 32k"
    "--dtype f32 --seqlen 1 --seqlen-k 32k"
    "--dtype bf16 --seqlen 1 --seqlen-k 4k --batch 8"
    "--dtype bf16 --seqlen 4k --mask none"
    "--dtype bf16 --seqlen 16k --mask window --window-left 1023"
    "--dtype bf16 --seqlen 4k --softcap 30"
    "--dtype bf16 --seqlen 4k --precision high"
    "--dtype bf16 --seqlen 4k --head-dim 64"
    "--dtype bf16 --seqlen 4k --head-dim 256"
    "--dtype bf16 --seqlen 4k --head-dim 192 --head-dim-v 128 --heads-kv 16"
    "--dtype bf16 --seqlen 1 --seqlen-k 8k --head-dim 576 --head-dim-v 512 --heads-kv 1"
)

cpu=$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -1)
machine=$("$tallow" info --json)
printf '{"cpu":"%s","cores":%d,"date":"%s","tallow":%s}\n' \
    "${cpu:-$(uname -m)}" "$(nproc)" "$(date -u +%F)" "$machine" >"$result.part"
for call in "${calls[@]}"; do
    echo "tallow bench $call" >&2
    # shellcheck disable=SC2086  # the words of a call are its flags
    "$tallow" bench $call --json >>"$result.part"
done
mv "$result.part" "$result"
echo "$result" >&2
