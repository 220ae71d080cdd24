"""Command lines, which give one checked ``RunConfig``. The only package that knows Hydra."""
