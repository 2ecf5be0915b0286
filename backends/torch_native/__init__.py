"""CPUs and GPUs through plain torch: one process per device, several processes through torchrun."""
