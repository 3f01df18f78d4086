"""Hyojo: labelled face images in, a tracked and served expression classifier out."""
