"""Sample one response a problem from the frozen model with vLLM: run_dir/samples.

python launch/generate.py +experiment=demo model.path=BASE run_dir=runs/mine
"""

from megatron_ssd.cli.entry import main
from megatron_ssd.generation.stage import run_generate

if __name__ == "__main__":
    main(run_generate, description=__doc__)
