"""The contrast of two colours, as the Web Content Accessibility Guidelines (2.2) define it."""

from __future__ import annotations


def contrast(x: str, y: str) -> float:
    """Compute the contrast of two colours, "#rrggbb", from 1 to 21; text needs 4.5."""
    dark, light = sorted((_luminance(x), _luminance(y)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
