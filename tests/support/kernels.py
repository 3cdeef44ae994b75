"""How kernels lie in some layouts: what a new layout of such a structure adds a line to. Needs no framework."""

from __future__ import annotations

from collections.abc import Mapping

# Layouts, of any framework, whose stem is a dense layer over flattened patches: the order of axes in a column. Their
# shapes show no more of a patch than the length of a column.
STEM_COLUMNS: Mapping[str, tuple[str, ...]] = {"lucidrains": ("ph", "pw", "channels")}

# Layouts whose token mixing is two Conv1d of kernel 1.
TOKENS_BY_CONV1D = frozenset({"lucidrains"})
