"""STAGE 2: arrays -> weights."""
