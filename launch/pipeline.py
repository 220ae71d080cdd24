"""Run every stage from problems to report, each in a process of its own; what is up to date is skipped.

python launch/pipeline.py experiment=demo
"""

from megatron_ssd.cli.pipeline import main

if __name__ == "__main__":
    main()
