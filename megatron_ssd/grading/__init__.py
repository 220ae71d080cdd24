"""Grading: checks one program, many programs in workers, and files of completions."""
