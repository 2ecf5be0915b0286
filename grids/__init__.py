"""Many runs as one experiment: what a grid of configs/grids describes, run, resumed, and shown as a table.

Nothing here but weights.py, a command, imports torch: the runs are processes of train.py.
"""
