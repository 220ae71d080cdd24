"""Show what a data set contains, after checking its files. An error gives one line and exit status 2.

python tools/inspect_dataset.py run_dir=runs/mine tokenizer=models/qwen3
python tools/inspect_dataset.py path=data/my_text_document examples=0    # files that Megatron-LM's tool made
"""

from megatron_ssd.cli.entry import main_of_tool
from megatron_ssd.config.tools import InspectConfig
from megatron_ssd.dataset.inspection import run_inspect

if __name__ == "__main__":
    main_of_tool(run_inspect, InspectConfig, description=__doc__)
