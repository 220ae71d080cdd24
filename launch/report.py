"""Write the report of a run: run_dir/report.

python launch/report.py experiment=demo run_dir=runs/mine
"""

from megatron_ssd.cli.entry import main
from megatron_ssd.report.render import run_report

if __name__ == "__main__":
    main(run_report, description=__doc__)
