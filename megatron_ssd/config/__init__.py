"""Frozen dataclasses of the configuration, with every default."""
