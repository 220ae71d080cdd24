"""Planner: predicts what a training run needs before it starts."""
