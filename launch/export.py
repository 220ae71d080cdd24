"""Write the trained weights as a Hugging Face folder, run_dir/export.

python launch/export.py experiment=demo model.path=BASE run_dir=runs/mine
"""

from megatron_ssd.cli.entry import main
from megatron_ssd.export.export import run_export

if __name__ == "__main__":
    main(run_export, description=__doc__)
