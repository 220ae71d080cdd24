"""Runtime: the machine under a run, with replacements for CUDA-only parts of Megatron-Core."""
