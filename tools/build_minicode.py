"""Builds the minicode world of the demo's base model: run_dir/tokenizer, run_dir/dataset.

python tools/build_minicode.py experiment=demo_base run_dir=runs/base/mine
"""

from megatron_ssd.cli.entry import main
from megatron_ssd.dataset.corpus import build_world

if __name__ == "__main__":
    main(build_world, description=__doc__)
