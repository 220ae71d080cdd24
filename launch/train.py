"""Train with Megatron-Core: run_dir/checkpoints. A single process starts those of the layout on this machine.

python launch/train.py model=qwen3_30b run_dir=runs/mine      the same as with torchrun in place of python
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
    from megatron_ssd.cli.launch import start_ranks_if_alone
    from megatron_ssd.runtime.device import prepare_device

    start_ranks_if_alone(config)
    device = prepare_device(config.cluster, config.precision, config.moe, config.parallel)
    from megatron_ssd.training.train import run_train

    run_train(config, device)


if __name__ == "__main__":
    main(train, description=__doc__, takes_ranks=True)
