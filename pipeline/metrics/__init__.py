"""Pure functions of answers: scores, calibration, intervals, paired tests, seeds; no I/O and no torch."""
