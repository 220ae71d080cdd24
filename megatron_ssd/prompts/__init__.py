"""From a problem to the exact token ids that a model is given."""
