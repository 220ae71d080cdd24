"""Training: data, loss, optimizer, checkpoints and the loop, on Megatron-Core."""
