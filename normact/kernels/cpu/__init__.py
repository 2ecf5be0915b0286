"""The fused operators on a CPU: C++ (csrc/), built at first use (build.py)."""
