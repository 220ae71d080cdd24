"""Models: from a public Hugging Face shape to Megatron-Core's GPTModel on every rank of a layout."""
