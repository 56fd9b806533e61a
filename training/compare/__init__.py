"""Grids of runs: arms of grounding x base models x seeds, paired tests, tables and pictures."""
