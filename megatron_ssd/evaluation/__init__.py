"""Decodes a benchmark with base and tuned model, and what the verdicts say: pass@k, intervals, the decode grid."""
