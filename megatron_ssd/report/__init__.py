"""What a run showed: ``summary.json`` for machines, self-contained ``report.html`` and ``problems.html`` for people."""
