"""Reference for the GPU tests: the same training on the CPU, in a process that sees no GPU.

python -m tests.gpu.on_cpu RUN_DIR    prints the losses by the name of the model, as JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.gpu.short_runs import losses
from tests.helpers.training_run import CPU, DENSE, EXACT, EXACT_ROUTER, MOE

if __name__ == "__main__":
    root = Path(sys.argv[1])
    print(json.dumps({model.name: losses(root, model, EXACT, EXACT_ROUTER, CPU) for model in (DENSE, MOE)}))
