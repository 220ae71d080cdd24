"""Models: Hugging Face architectures as Megatron-Core's GPTModel, in any layout."""
