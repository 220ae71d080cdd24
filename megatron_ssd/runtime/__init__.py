"""The machine under a run: device, process groups, and what replaces CUDA-only parts of Megatron-Core."""
