"""stub"""
from __future__ import annotations
from pathlib import Path
from typing import Any
def load_program(path: Path) -> Any:
    raise NotImplementedError
