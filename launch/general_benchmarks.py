"""Run general benchmarks on a run's models with lm-eval: run_dir/general_benchmarks.

python launch/general_benchmarks.py experiment=demo general_benchmarks.tasks=[mmlu] model.path=BASE run_dir=runs/mine
"""

from megatron_ssd.cli.entry import main
from megatron_ssd.general_benchmarks.stage import run_general_benchmarks

if __name__ == "__main__":
    main(run_general_benchmarks, description=__doc__)
