"""From sampled responses to packed training sequences: filters, Megatron's .bin/.idx, packing."""
