"""Train with Megatron-Core: run_dir/checkpoints. Start it with torchrun, one process a device.

torchrun --nproc-per-node=8 launch/train.py model=qwen3_30b run_dir=runs/mine
python launch/train.py model=qwen3_30b dry_run=true
"""

from megatron_ssd.cli.entry import main
from megatron_ssd.training.stage import run_train

if __name__ == "__main__":
    main(run_train, description=__doc__)
