"""Frozen dataclasses, one module a stage. Every default lives here, once, and is checked where it is set."""
