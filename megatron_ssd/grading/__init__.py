"""Verdicts of programs: the check of one program, the workers that run many, files of completions."""
