"""Weights -> bundle: ``python -m pipeline.export``."""

from pipeline.core.errors import stage_main
from pipeline.core.signals import die_with_parent
from pipeline.export.stage import main

die_with_parent()
stage_main(main)
