"""Score each response by its mean log-probability under a smaller model: run_dir/scores.

python launch/score.py experiment=demo proxy.path=SMALLER_MODEL run_dir=runs/mine
"""

from megatron_ssd.cli.entry import main
from megatron_ssd.generation.scoring import run_score

if __name__ == "__main__":
    main(run_score, description=__doc__)
