"""Sample responses to the problems from the frozen model with vLLM: run_dir/samples.

python launch/generate.py experiment=demo model.path=BASE run_dir=runs/mine

Workers that share a run: torchrun --nproc-per-node=N before the script, or worker.rank=R worker.world=N after it.
"""

from megatron_ssd.cli.entry import main
from megatron_ssd.generation.stage import run_generate

if __name__ == "__main__":
    main(run_generate, description=__doc__, takes_ranks=True)
