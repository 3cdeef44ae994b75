"""Packages that a test imports only where it makes one of their models: transformers takes seconds."""

from __future__ import annotations

from typing import Any

from mixer_equiv.equivalence.sides.locate import import_timm


def import_transformers() -> Any:
    """Import transformers; timm first, by which operators of a torchvision that does not load are declared."""
    import_timm()
    import transformers

    return transformers
