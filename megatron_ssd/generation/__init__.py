"""Sampling: draws responses with vLLM into a resumable store."""
