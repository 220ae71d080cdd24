"""The machine under a run: device, process groups, seeds, and the one adaptation of Megatron-Core to a CPU."""
