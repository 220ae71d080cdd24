"""Predict what a run needs: memory by part, whether it fits, epochs, operations, hours.

python tools/plan.py model=qwen3_30b parallel=cp8_ep8 precision=mxfp8
python tools/plan.py experiment=b200_mxfp8 --gpu=B200 --mfu=0.3
python tools/plan.py --table --write    # docs/guides/recipes.md
"""

from megatron_ssd.cli.plan import main

if __name__ == "__main__":
    main()
