"""Other benchmarks on base and tuned model, as lm-eval defines them: did tuning harm anything else?"""
