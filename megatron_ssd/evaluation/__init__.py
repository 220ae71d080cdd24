"""From responses to claims: code extraction, sandbox, grading, pass@k with intervals, the decode grid."""
