"""The picture of what usual checks miss: families of faults by checks, as counts. Start reading at `draw`.

It is written as SVG text, on a white card, so that it is readable on a dark page too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from mixer_equiv.equivalence.faults.kill_matrix import COUNT, KillMatrix, Outcome

# The families, and the ids of the catalogue in each. A test holds that each fault is in one of them.
FAMILIES: Mapping[str, Sequence[str]] = {
    "another activation": ("activation", "extra_activation", "unknown"),
    "another LayerNorm eps": ("layer_norm_eps",),
    "LayerNorms missing or moved": (
        *("layer_norm_missing", "layer_norm_axes", "layer_norm_variance", "layer_norm_mean", "post_norm"),
        *("batch_norm", "norm_after_stem", "norm_after_pool", "extra_layer_norm"),
    ),
    "residual connections": ("residual_missing", "residual_normalised", "residual"),
    "order of the MLPs": ("sublayers_swapped",),
    "pooling and output": ("pooling", "output"),
    "order of axes, patches, images": ("transpose", "reshape", "patches", "preprocessing"),
    "further layers and factors": (
        *("extra_mlp", "position_embedding", "mlp_head", "extra_layer", "extra_scale", "extra_bias", "extra_affine"),
        "constant",
    ),
    "shared or absent parameters": ("shared_parameters", "tied_blocks", "absent_parameters"),
    "what one usual call hides": ("neighbours", "memory", "branch", "limit", "float32"),
    "weights in a wrong place": (
        *("kernel_not_transposed", "norms_swapped", "mlps_swapped", "blocks_reordered", "blocks_moved"),
        *("stem_hw_swapped", "stem_flattened", "tokens_by_columns"),
    ),
    "other weights": ("zeroed", "not_finite", "head_not_loaded", "weights", "round_trip"),
    "weights rounded or cast": (
        *("rounded_to_bfloat16", "rounded_to_float16", "rounded_to_float32", "dtype", "last_place"),
    ),
}
CHECKS: Mapping[str, str] = {
    COUNT: "count and shape",
    "1e-3": "allclose 1e-3",
    "1e-4": "allclose 1e-4",
    "1e-5": "allclose 1e-5",
    "close": "assert_close",
    "cosine": "cosine > 0.99",
    "PCC": "PCC > 0.99",
}
NAMED = "the cause named"  # the group of `verify`, whose heading is in the description alone
NONE, ALL = (0xF3, 0xF3, 0xF3), (0x00, 0x5A, 0x8F)  # the colours of a cell, where no fault is noticed and where all are
DARK, LIGHT = "#000000", "#ffffff"

# In pixels.
_WIDTH, _LEFT, _TOP, _ROW, _COLUMN, _GAP = 760, 264, 162, 27, 30, 15


@dataclasses.dataclass(frozen=True)
class Group:
    """Columns that stand together: the heading of each, and the faults that it counts as noticed."""

    heading: str
    columns: Mapping[str, frozenset[str]]


def draw(matrix: KillMatrix, causes: Mapping[str, str]) -> str:
    """Draw the picture as SVG; `causes` has the id in the catalogue of each planted fault."""
    rows = {
        family: [fault for fault in matrix.faults if causes[fault.fault] in ids] for family, ids in FAMILIES.items()
    }
    height = _TOP + _ROW * (len(rows) + 1) + 56
    parts = [*_headings(matrix), *_lines(matrix, rows), _legend(height - 24)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="t d" '
        f'font-family="system-ui, sans-serif" font-size="14" fill="{DARK}">\n'
        '  <title id="t">What usual checks notice</title>\n'
        f'  <desc id="d">{escape(describe(matrix))}</desc>\n'
        f'  <rect width="{_WIDTH}" height="{height}" rx="8" fill="#fff"/>\n' + "".join(f"  {part}\n" for part in parts)
    ) + "</svg>\n"


def describe(matrix: KillMatrix) -> str:
    """Write the last line of the picture in words."""
    groups = [
        f"{group.heading} ({', '.join(f'{name}: {len(noticed)}' for name, noticed in group.columns.items())})"
        for group in _groups(matrix)
    ]
    return f"Noticed, of {len(matrix.faults)} planted faults: {'; '.join(groups)}."


def shade(share: float) -> tuple[str, str]:
    """Compute the colour of a cell from the share of faults that are noticed, and that of the number on it."""
    mixed = [round(low + (high - low) * share) for low, high in zip(NONE, ALL, strict=True)]
    # Up to this share the contrast of black is above 4.5, and beyond it that of white.
    return "#" + "".join(f"{channel:02x}" for channel in mixed), LIGHT if share > 0.775 else DARK


def _groups(matrix: KillMatrix) -> list[Group]:
    def noticed(condition: Mapping[str, dict[str, bool]], check: str) -> frozenset[str]:
        return frozenset(fault for fault, noticed in condition.items() if noticed[check])

    fresh = {fault.fault: fault.fresh for fault in matrix.faults}
    random = {fault.fault: fault.random for fault in matrix.faults}
    named = frozenset(fault.fault for fault in matrix.faults if fault.named)
    return [
        Group("fresh model", {name: noticed(fresh, check) for check, name in CHECKS.items()}),
        Group("every parameter random", {name: noticed(random, check) for check, name in CHECKS.items()}),
        Group(NAMED, {"verify": named}),
    ]


def _places(matrix: KillMatrix) -> Iterator[tuple[Group, float]]:
    """Yield each group with the place of its left edge."""
    left = float(_LEFT)
    for group in _groups(matrix):
        yield group, left
        left += _COLUMN * len(group.columns) + _GAP


def _headings(matrix: KillMatrix) -> Iterator[str]:
    for group, left in _places(matrix):
        width = _COLUMN * len(group.columns)
        if group.heading != NAMED:
            yield f'<text x="{left:g}" y="26" font-weight="600">{escape(group.heading)}</text>'
            yield f'<path d="M{left:g} 34h{width - 2:g}" stroke="#8a8a8a"/>'
        for i, name in enumerate(group.columns):
            x, y = left + _COLUMN * (i + 0.5) + 4, _TOP - 8
            bold = ' font-weight="600"' if group.heading == NAMED else ""
            yield f'<text transform="translate({x:g} {y}) rotate(-90)" font-size="13"{bold}>{escape(name)}</text>'
    yield f'<text x="{_LEFT - 10}" y="{_TOP - 8}" font-size="12" text-anchor="end">faults</text>'


def _lines(matrix: KillMatrix, rows: Mapping[str, Sequence[Outcome]]) -> Iterator[str]:
    """Yield a line of cells for each family, and one for all faults."""
    y = float(_TOP)
    for name, faults in [*rows.items(), ("all", matrix.faults)]:
        weight = ""
        if name == "all":
            y, weight = y + 6, ' font-weight="600"'
        middle = y + _ROW / 2 + 5
        planted = frozenset(fault.fault for fault in faults)
        yield f'<text x="16" y="{middle:g}"{weight}>{escape(name)}</text>'
        yield f'<text x="{_LEFT - 10}" y="{middle:g}" text-anchor="end"{weight}>{len(planted)}</text>'
        for group, left in _places(matrix):
            for i, noticed in enumerate(group.columns.values()):
                yield _cell(left + i * _COLUMN, y, len(noticed & planted), len(planted), weight)
        y += _ROW


def _cell(x: float, y: float, noticed: int, planted: int, weight: str) -> str:
    colour, text = shade(noticed / planted if planted else 0.0)
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{_COLUMN - 2}" height="{_ROW - 2}" fill="{colour}"/>'
        f'<text x="{x + _COLUMN / 2 - 1:g}" y="{y + _ROW / 2 + 4:g}" text-anchor="middle" font-size="13" '
        f'fill="{text}"{weight}>{noticed}</text>'
    )


def _legend(y: float) -> str:
    return (
        f'<text x="16" y="{y:g}" font-size="12">How many faults of each family a check notices, of those planted; '
        "the darker, the larger their share.</text>"
    )
