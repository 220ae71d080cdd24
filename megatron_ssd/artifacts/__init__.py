"""Artifacts: files that stages exchange, written atomically, with their lineage."""
