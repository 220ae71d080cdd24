"""The report of a run: ``summary.json`` for programs, ``report.html`` and ``problems.html`` for people."""
