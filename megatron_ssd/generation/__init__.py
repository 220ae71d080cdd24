"""Sampling the frozen model: what to draw, the engines that draw it, and what is kept."""
