"""From a problem to the exact token ids that a model is given, and from its response to the program in it."""
