"""``python -m diffrl_lightning.generate --help``: write a PointMaze dataset by hand."""

from jsonargparse import auto_cli

from diffrl_lightning.cli import exit_on_bad_input
from diffrl_lightning.data.pointmaze import generate

if __name__ == "__main__":
    with exit_on_bad_input():
        auto_cli(generate, as_positional=False)
