"""Frozen dataclasses of the configuration: every default and every check."""
