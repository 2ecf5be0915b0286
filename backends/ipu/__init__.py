"""IPUs through PopTorch. backend.py alone imports it; the planner (backends/plan) needs none."""
