"""Simple Self-Distillation (SSD, arXiv 2604.01193) on NVIDIA Megatron-Core."""

import warnings

__version__ = "0.1.0"

# Megatron-Core warns at import if these CUDA libraries are absent. On a GPU, runtime.hardware checks for what is
# needed.
warnings.filterwarnings("ignore", message=".*(Transformer Engine|Apex)", category=UserWarning)
