"""From a Megatron-Core checkpoint to a Hugging Face folder that transformers and vLLM load."""
