"""Write filtered samples as Megatron .bin/.idx: run_dir/dataset.

python tools/preprocess_data.py experiment=demo run_dir=runs/mine
"""

from megatron_ssd.cli.entry import main
from megatron_ssd.dataset.stage import run_preprocess

if __name__ == "__main__":
    main(run_preprocess, description=__doc__)
