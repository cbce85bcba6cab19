"""Grids of trainings and tests: what is to run, how each run is done, where, and what it shows."""
