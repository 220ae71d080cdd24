"""General benchmarks of lm-eval: did tuning harm anything else?"""
