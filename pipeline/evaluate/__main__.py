"""Test split -> scores, tables, report: ``python -m pipeline.evaluate``."""

from pipeline.core.errors import stage_main
from pipeline.core.signals import die_with_parent
from pipeline.evaluate.stage import main

die_with_parent()
stage_main(main)
