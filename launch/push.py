"""Upload the model or the samples of a run to the Hugging Face Hub, privately: run_dir/push.

python launch/push.py run_dir=runs/mine push.repo=OWNER/NAME dry_run=true
python launch/push.py run_dir=runs/mine push.repo=OWNER/NAME push.what=samples
"""

from megatron_ssd.cli.entry import main
from megatron_ssd.report.push import run_push

if __name__ == "__main__":
    main(run_push, description=__doc__)
