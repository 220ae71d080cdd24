"""Sources of problems: training sets, benchmarks, deduplication, decontamination."""
