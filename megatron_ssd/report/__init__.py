"""Report: shows the results of a run."""
