"""From a problem to the exact token ids of its prompt, and from a response to the program in it."""
