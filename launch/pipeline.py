"""Run every stage from problems to report; stages that are up to date are skipped.

python launch/pipeline.py experiment=demo
"""

from megatron_ssd.cli.pipeline import main

if __name__ == "__main__":
    main()
