"""Evaluate a run's models on the benchmark: run_dir/eval.

python launch/evaluate.py experiment=demo model.path=BASE run_dir=runs/mine
"""

from megatron_ssd.cli.entry import main
from megatron_ssd.evaluation.stage import run_evaluate

if __name__ == "__main__":
    main(run_evaluate, description=__doc__)
