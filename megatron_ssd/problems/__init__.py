"""Where problems come from: training sources, benchmarks, and the removal of duplicates."""
