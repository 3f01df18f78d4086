"""``python -m pipeline.cli``, as ``hyojo``."""

from pipeline.cli import main

main()
