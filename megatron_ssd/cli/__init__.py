"""Command lines: YAML and overrides in, one checked ``RunConfig`` out. The only package that knows Hydra."""
