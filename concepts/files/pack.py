"""Folder of the installed pack, the root of the paths of all shipped files."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
"""Contains concepts/, nodes/, trainer/, demo/; symbolic links are not resolved."""
