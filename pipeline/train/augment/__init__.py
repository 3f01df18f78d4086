"""Batched augmentation, drawn from counters."""
