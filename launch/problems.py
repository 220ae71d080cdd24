"""Choose the training problems: run_dir/problems. They are decontaminated.

python launch/problems.py experiment=demo run_dir=runs/mine
"""

from megatron_ssd.cli.entry import main
from megatron_ssd.problems.stage import run_problems

if __name__ == "__main__":
    main(run_problems, description=__doc__)
