"""Evaluate a run's models on the benchmark: run_dir/eval.

python launch/evaluate.py experiment=demo model.path=BASE run_dir=runs/mine

With evaluation.checkpoints=all, every checkpoint: run_dir/by_checkpoint.
"""

from megatron_ssd.cli.entry import main
from megatron_ssd.evaluation.checkpoints import run_evaluations

if __name__ == "__main__":
    main(run_evaluations, description=__doc__)
