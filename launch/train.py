"""Train with Megatron-Core: run_dir/checkpoints. Start it with torchrun, one process per device.

torchrun --nproc-per-node=8 launch/train.py model=qwen3_30b run_dir=runs/mine
python launch/train.py model=qwen3_30b dry_run=true
"""

from megatron_ssd.cli.entry import main
from megatron_ssd.config.run import RunConfig


def train(config: RunConfig) -> None:
    """Train; with ``dry_run=true`` only build the model without memory and print its layout."""
    # Imported here for two reasons: --help and configuration errors should not wait for torch, and Megatron-Core must
    # be imported after prepare_device, which sets its environment variables and silences its import warnings.
    if config.dry_run:
        from megatron_ssd.planner.dry_run import run_dry

        run_dry(config)
        return
    from megatron_ssd.runtime.device import prepare_device

    device = prepare_device(config.cluster, config.precision, config.moe, config.parallel)
    from megatron_ssd.training.train import run_train

    run_train(config, device)


if __name__ == "__main__":
    main(train, description=__doc__, takes_ranks=True)
