"""Run other benchmarks on base and tuned model with lm-eval, did tuning harm anything else?: run_dir/regression.

python launch/regression.py experiment=demo regression.tasks=[humaneval,mmlu] model.path=BASE run_dir=runs/mine
"""

from megatron_ssd.cli.entry import main
from megatron_ssd.general_benchmarks.stage import run_regression

if __name__ == "__main__":
    main(run_regression, description=__doc__)
