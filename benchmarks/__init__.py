"""What run_benchmarks.sh runs: times and memory, measured by one protocol (protocol.py)."""
