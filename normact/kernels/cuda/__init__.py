"""The fused operators on a CUDA GPU, in Triton."""
