"""Grading: checks programs against the tests of problems."""
