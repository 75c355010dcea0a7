"""The folder of the pack: every path to what it ships starts here."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
"""Holds concepts/, nodes/, trainer/, demo/; links in it are not resolved."""
