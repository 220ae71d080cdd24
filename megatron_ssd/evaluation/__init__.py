"""Evaluation: pass@k of the base model compared with the tuned one over the decode grid."""
