"""Environments: how they are made, PointMaze's geometry, and the rollout loop."""
