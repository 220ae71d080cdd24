"""Export of Megatron-Core checkpoints to Hugging Face folders that transformers and vLLM load, and conversion."""
