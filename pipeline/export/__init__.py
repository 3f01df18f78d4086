"""STAGE 4: weights -> bundle, parity, int8."""
