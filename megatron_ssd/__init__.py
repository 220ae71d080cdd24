"""Simple Self-Distillation (SSD, arXiv 2604.01193) on NVIDIA Megatron-Core."""

__version__ = "0.1.0"
