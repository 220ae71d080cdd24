"""Submit every stage from problems to report to SLURM; stages that are up to date are skipped.

python launch/submit.py experiment=b200_64k problems=rstar_coder cluster=mine
python launch/submit.py ... --status
"""

from megatron_ssd.cli.submit import main

if __name__ == "__main__":
    main()
