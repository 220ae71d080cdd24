"""Convert a Hugging Face model folder to a Megatron-Core checkpoint, or back, bit by bit.

python tools/convert_checkpoint.py direction=hf_to_megatron hf=models/qwen3 megatron=models/qwen3-megatron
python tools/convert_checkpoint.py direction=megatron_to_hf megatron=models/qwen3-megatron hf=models/qwen3-again
"""

from __future__ import annotations

import sys

from megatron_ssd.cli.entry import EXIT_INTERRUPTED, run_guarded, start_logging
from megatron_ssd.cli.keys import key_parser, parse_keys
from megatron_ssd.config.export import ConvertConfig
from megatron_ssd.export.convert import run_convert


def _run(arguments: list[str]) -> None:
    start_logging()
    try:
        run_convert(parse_keys(ConvertConfig, arguments))
    except KeyboardInterrupt:
        print("interrupted: nothing was written; run the same command again", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def main() -> None:
    """Parse, convert, and end with one line where something is wrong."""
    arguments = key_parser(__doc__, ConvertConfig).parse_args().arguments
    run_guarded(lambda: _run(arguments))


if __name__ == "__main__":
    main()
