"""From responses to claims: sandbox, grading, pass@k with intervals, the decode grid."""
