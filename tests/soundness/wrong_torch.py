"""Wrong Mixers in torch: one table for each way to deceive."""

from __future__ import annotations

from tests.soundness.wrong import (
    buffers,
    chance,
    compositions,
    decisions,
    gradients,
    mathematics,
    memory_counts,
    memory_values,
    place,
    precision,
    reach,
    structure,
    surroundings,
    weights,
)

CASES = tuple(
    case
    for table in (
        *(place, memory_counts, memory_values, chance, decisions, reach, precision, buffers, gradients, mathematics),
        *(structure, compositions, surroundings, weights),
    )
    for case in table.CASES
)
