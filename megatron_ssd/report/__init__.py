"""What a run showed: ``summary.json`` for machines, one self-contained ``report.html`` for people."""
