"""A PointMaze dataset, written by hand."""

from diffrl_lightning.data.sources.pointmaze import generate

__all__ = ["generate"]
