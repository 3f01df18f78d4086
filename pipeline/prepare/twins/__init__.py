"""Copies of a picture, exact and near: found, and marked."""
