#!/usr/bin/env bash
# Every number that this project publishes about speed and memory, one line each. The machine must be quiet.
#
#   ./run_benchmarks.sh                        everything
#   ./run_benchmarks.sh --quick                less of each
#   ./run_benchmarks.sh [--quick] --runs 3     three times; of each number the worst
#
# All rewrite the tables in docs/speed.md, which name the command, and the plots in benchmarks/plots/.
# Results go to benchmarks/results/*.json (with --quick to benchmarks/results/quick), those of each run to run1, run2, ... there.
# A GPU, where there is one, is measured too. Training results come from train.py: see docs/results.md.
set -euo pipefail
cd "$(dirname "$0")"
command="./run_benchmarks.sh${*:+ $*}"
results=benchmarks/results
quick=()
runs=1
while [ $# -gt 0 ]; do
    case "$1" in
        --quick) results=benchmarks/results/quick quick=(--quick) ;;
        --runs)
            runs=${2:-}
            if ! [[ "$runs" =~ ^[1-9][0-9]*$ ]]; then
                echo "run_benchmarks.sh: --runs '$runs' is no number of runs; use --runs 3" >&2
                exit 2
            fi
            shift ;;
        *)
            echo "run_benchmarks.sh: unknown argument '$1'; use --quick, --runs N, both or nothing" >&2
            exit 2 ;;
    esac
    shift
done
rm -rf "$results"/run*
for ((i = 1; i <= runs; i++)); do
    run="$results/run$i"
    mkdir -p "$run"
    python -m benchmarks.layer --out "$run/layer.json"
    python -m benchmarks.peers --results "$run" "${quick[@]}"
    python -m benchmarks.step --results "$run" "${quick[@]}"
    python -m benchmarks.memory --results "$run"
    python -m benchmarks.inference --results "$run" "${quick[@]}"
    python -m benchmarks.growth --results "$run" "${quick[@]}"
    python -m benchmarks.data --results "$run" "${quick[@]}"
    if [ -z "${quick[*]}" ] && python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        python -m benchmarks.layer_cuda --results "$run"
    fi
done
python -m benchmarks.worst "$results"/run* --out "$results"
python -m benchmarks.report --results "$results" --write --command "$command"
