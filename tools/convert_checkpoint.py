"""Convert a Hugging Face model folder to a Megatron-Core checkpoint, or back, bit by bit.

python tools/convert_checkpoint.py direction=hf_to_megatron hf=models/qwen3 megatron=models/qwen3-megatron
python tools/convert_checkpoint.py direction=megatron_to_hf megatron=models/qwen3-megatron hf=models/qwen3-again
"""

from __future__ import annotations

import sys

from megatron_ssd.cli.entry import EXIT_INTERRUPTED, main_of_tool
from megatron_ssd.config.tools import ConvertConfig
from megatron_ssd.export.convert import run_convert


def _run(config: ConvertConfig) -> None:
    try:
        run_convert(config)
    except KeyboardInterrupt:
        print("interrupted: nothing was written; run the same command again", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main_of_tool(_run, ConvertConfig, description=__doc__)
