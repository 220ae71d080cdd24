"""Sampling: which responses to draw, the engines that draw them, and the store that keeps them."""
