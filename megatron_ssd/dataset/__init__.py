"""From sampled responses to rows that training reads: filters, Megatron's .bin/.idx, packing."""
