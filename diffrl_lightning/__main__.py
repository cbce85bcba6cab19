"""``python -m diffrl_lightning`` is the console script ``diffrl``."""

from diffrl_lightning.cli import main

main()
