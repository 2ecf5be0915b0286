#!/usr/bin/env bash
# Every number that this project publishes about speed, one line each. The machine must be quiet.
#
#   ./run_benchmarks.sh            the whole tables, with peers
#   ./run_benchmarks.sh --quick    ours against batch norm alone, about five minutes
#
# Results go to benchmarks/results/*.json. Training results come from train.py: see the table in README.md.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p benchmarks/results
python -m benchmarks.layer --out benchmarks/results/layer.json "$@"
