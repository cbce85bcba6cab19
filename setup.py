"""Puts configs/ into the package, as diffrl_lightning/configs; all else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["diffrl_lightning*"]), "diffrl_lightning.configs"],
    package_dir={"diffrl_lightning.configs": "configs"},
    package_data={"diffrl_lightning.configs": ["**/*.yaml"]},
)
