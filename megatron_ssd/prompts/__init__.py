"""Prompts: turns problems into token ids, and responses into programs."""
