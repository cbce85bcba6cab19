"""A PointMaze dataset, written by hand."""

from diffrl_lightning.data.pointmaze import generate

__all__ = ["generate"]
