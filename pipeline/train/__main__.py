"""Packed arrays -> weights: ``python -m pipeline.train``."""

from pipeline.core.errors import stage_main
from pipeline.core.signals import die_with_parent
from pipeline.train.stage import main

die_with_parent()
stage_main(main)
