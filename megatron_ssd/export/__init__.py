"""Export: Megatron-Core checkpoints as Hugging Face folders that transformers or vLLM loads."""
