"""Training on Megatron-Core."""
