"""General benchmarks: tasks of lm-eval that show whether tuning harmed other abilities."""
