#!/usr/bin/env bash
# Every number that this project publishes about speed and memory, one line each. The machine must be quiet.
#
#   ./run_benchmarks.sh            everything
#   ./run_benchmarks.sh --quick    less of each
#
# Both rewrite the tables in README.md, which name the command, and the plots in benchmarks/plots/.
# Results go to benchmarks/results/*.json (with --quick to benchmarks/results/quick). A GPU, where there is one, is measured
# too. Training results come from train.py: see the table in README.md.
set -euo pipefail
cd "$(dirname "$0")"
results=benchmarks/results
quick=()
if [ "${1:-}" = --quick ]; then
    results=benchmarks/results/quick
    quick=(--quick)
elif [ $# -gt 0 ]; then
    echo "run_benchmarks.sh: unknown argument '$1'; use --quick or nothing" >&2
    exit 2
fi
mkdir -p "$results"
python -m benchmarks.layer --out "$results/layer.json"
python -m benchmarks.peers --results "$results" "${quick[@]}"
python -m benchmarks.step --results "$results" "${quick[@]}"
python -m benchmarks.memory --results "$results"
python -m benchmarks.inference --results "$results" "${quick[@]}"
python -m benchmarks.growth --results "$results" "${quick[@]}"
if [ -z "${quick[*]}" ] && python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    python -m benchmarks.layer_cuda --results "$results"
fi
python -m benchmarks.report --results "$results" --write "${quick[@]}"
