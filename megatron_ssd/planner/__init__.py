"""Planner: what a training run will need, computed before it starts."""
