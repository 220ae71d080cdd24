"""Predict what a run needs: memory by part, whether it fits, epochs, operations, hours.

python tools/plan.py model=qwen3_30b parallel=cp8_ep8 precision=mxfp8
python tools/plan.py experiment=b200_64k --gpu=B200
python tools/plan.py experiment=b200_8k --gpu=B200 --rank=8
python tools/plan.py --table --write    # docs/guides/recipes.md
"""

from megatron_ssd.cli.plan import main

if __name__ == "__main__":
    main()
