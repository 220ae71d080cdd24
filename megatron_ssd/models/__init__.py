"""Models: Hugging Face shapes and weights as Megatron-Core's GPTModel, on every rank of a layout."""
