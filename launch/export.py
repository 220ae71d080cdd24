"""Write the trained weights as a Hugging Face folder, run_dir/export.

python launch/export.py experiment=demo model.path=BASE run_dir=runs/mine
"""

from megatron_ssd.cli.entry import main
from megatron_ssd.config.run import RunConfig


def export(config: RunConfig) -> None:
    """Export the checkpoint of the run."""
    from megatron_ssd.export.export import run_export  # here, because --help and errors should not wait for torch

    run_export(config)


if __name__ == "__main__":
    main(export, description=__doc__)
