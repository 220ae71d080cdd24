"""Prompts: what a model reads for a problem, as token ids. Also finds the program in a response."""
