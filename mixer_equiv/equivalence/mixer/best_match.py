"""`best_match`: find the official program in a trace.

The tokens may be in another order than by rows, and the image may be changed before its patches are taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from einops import rearrange

from mixer_equiv.equivalence.deviation import Deviation
from mixer_equiv.equivalence.match.axes import arrange_like, locate_elements
from mixer_equiv.equivalence.match.program_search import PartialMatch, WholeMatch, find_program
from mixer_equiv.equivalence.mixer.official_program import DEEPEST, official_programs
from mixer_equiv.equivalence.record.array_fingerprint import Fingerprint
from mixer_equiv.equivalence.record.trace import Trace
from mixer_equiv.operations import cut


def best_match(trace: Trace, entry: np.ndarray, thorough: bool) -> tuple[WholeMatch | PartialMatch, np.ndarray | None]:
    """Find the official program, and the order of the tokens where that is not by rows.

    A search that is not `thorough` gives up where no step leads on.
    """
    programs = official_programs(_deepest(trace))
    found = find_program(trace, entry, programs, thorough=False)
    if is_settled(found) or not trace.operands:
        return found, None
    if len(found.values) > 2:
        others = []
        is_plain = all(deviation.what != "patches" for deviation in found.deviations)
        for order in _token_orders(found.values[2], trace) if is_plain else ():
            reordered = _with_patches_in(entry, found.values[1].shape[2:4], order)
            others.append((find_program(trace, reordered, programs, thorough=False), order, reordered))
            if is_settled(others[-1][0]):
                return others[-1][:2]
        if thorough:
            further = max(others, key=lambda other: len(other[0].values), default=None)
            further = further if further is not None and len(further[0].values) > len(found.values) else None
            found = find_program(trace, entry, programs)
            if further is not None and not isinstance(found, WholeMatch):
                other = find_program(trace, further[2], programs)
                if isinstance(other, WholeMatch):
                    return other, further[1]
        return found, None
    given = trace.values[trace.input]
    for value in trace.by_size.get(entry.size, [])[1:5]:
        if value.array.shape == given.array.shape:
            image = arrange_like(value.array, given.array, entry)
            changed = find_program(dataclasses.replace(trace, input=value.number), image, programs, thorough=thorough)
            if isinstance(changed, WholeMatch):
                first = changed.program.steps[0].name
                scaled = Deviation(first, "insert", "preprocessing", None, value.operation, place=value.place)
                return dataclasses.replace(changed, deviations=(scaled, *changed.deviations)), None
    for filled, images in _filled_up(trace, entry):
        longer = find_program(filled, images, programs, thorough=thorough)
        if isinstance(longer, WholeMatch):
            return longer, None
    return found, None


def _filled_up(trace: Trace, entry: np.ndarray) -> Iterator[tuple[Trace, np.ndarray]]:
    """The trace from where it has further images behind those of `entry` to where it takes them away, and them all."""
    given = trace.values[trace.input].array
    order = locate_elements(given[0], entry[0])
    ends = {
        path: value.number
        for path, number in trace.outputs.items()
        for value in trace.data
        if _begins_with(value.array, trace.values[number].array)
    }
    for value in trace.data if ends else ():
        if _begins_with(value.array, given):
            images = value.array.reshape(len(value.array), -1)[:, order]
            yield dataclasses.replace(trace, input=value.number, outputs=ends), images.reshape(-1, *entry.shape[1:])


def _begins_with(longer: np.ndarray, array: np.ndarray) -> bool:
    """Whether the first rows of a longer array are those of `array`."""
    is_longer = longer.ndim == array.ndim > 0 and len(longer) > len(array) and longer.shape[1:] == array.shape[1:]
    return is_longer and np.array_equal(longer[: len(array)], array)


def _token_orders(meant: np.ndarray, trace: Trace) -> Iterator[np.ndarray]:
    """Orders of tokens, other than by rows, in which the trace has the value `meant` (batch, tokens, hidden)."""
    tried = {tuple(range(meant.shape[1]))}
    own = Fingerprint(meant)
    for value in trace.values:
        if value.is_data and own.matches(value.fingerprint):
            orders = np.argsort(locate_elements(value.array, meant).reshape(meant.shape), axis=1)
            order = orders[0, :, 0]
            if np.all(orders == order[:, None]) and tuple(order) not in tried:
                tried.add(tuple(order))
                yield order


def _with_patches_in(images: np.ndarray, patch_hw: tuple[int, ...], order: np.ndarray) -> np.ndarray:
    """Rearrange images (batch, height, width, channels) so that their patches by rows are those in `order`."""
    ph, pw = patch_hw
    patches = cut(images, (ph, pw))[:, order]
    return rearrange(patches, "b (h w) ph pw c -> b (h ph) (w pw) c", h=images.shape[1] // ph)


def _deepest(trace: Trace) -> int:
    """The largest possible number of blocks: each uses at least four kernels."""
    return min(DEEPEST, sum(map(len, trace.uses.values())) // 4 + 1)


def is_settled(found: WholeMatch | PartialMatch) -> bool:
    """Whether the match reached the output without a step that is not known."""
    return isinstance(found, WholeMatch) and all(deviation.kind != "unknown" for deviation in found.deviations)
