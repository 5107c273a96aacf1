"""Kept for tools that look for a setup.py (Dataflow's --setup_file); all is said in pyproject.toml."""

from setuptools import setup

setup()
