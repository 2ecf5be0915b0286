"""How a network learns, on any device: loss, schedule, optimizer, metrics and checkpoints.

Nothing here moves a tensor to a device or knows a network, a data set or a backend; only `configs` is imported.
"""
