"""Runs on a SLURM cluster: jobs, how far they are, and whether a requeued one still makes progress."""
