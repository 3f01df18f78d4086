"""STAGE 1: any source -> checked, packed arrays."""
