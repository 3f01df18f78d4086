"""Bytes -> pixels -> faces -> probabilities; ships inside every served model as one folder.

Modules import one another by relative names and nothing else of this project, so that the copy in a registered model
stands alone.
"""
