"""Memory, operations and layout of a training run, before it starts."""
