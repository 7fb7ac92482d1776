"""Puts the folder's modules on the path, as all processes of a fault test have it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
