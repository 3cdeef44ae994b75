"""The pages of recorded results, taken from benchmarks/results as they are."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
FOLDER = "reference/results"


def pages() -> dict[str, str]:
    """Each page of results in Markdown, by its path in the site."""
    return {f"{FOLDER}/{path.name}": path.read_text(encoding="utf-8") for path in sorted(RESULTS.glob("*.md"))}


def pictures() -> dict[str, bytes]:
    """Each picture of results, by its path in the site."""
    return {f"{FOLDER}/{path.name}": path.read_bytes() for path in sorted(RESULTS.glob("*.png"))}
