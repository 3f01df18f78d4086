"""Bytes -> pixels -> faces -> probabilities; ships inside every served model as one folder."""
