"""Source images -> checked, packed arrays: ``python -m pipeline.prepare``."""

from pipeline.core.errors import stage_main
from pipeline.prepare.stage import main

stage_main(main)
