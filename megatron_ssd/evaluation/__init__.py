"""Evaluation: pass@k of the base model and of the tuned model over the decode grid."""
