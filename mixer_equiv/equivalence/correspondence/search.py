"""`Search`: A is run on parameters of B, which are found on the way, step by step.

Start at `found_by`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixer_equiv.equivalence.correspondence.changes import (
    Change,
    Suspects,
    candidate_literals,
    changes_of,
    taken_from,
    terms_left_out,
)
from mixer_equiv.equivalence.correspondence.forward import Forward
from mixer_equiv.equivalence.correspondence.hits import Hit, HitFinder, Way
from mixer_equiv.equivalence.correspondence.kinds import ELEMENTWISE, MOVES, operation_name
from mixer_equiv.equivalence.correspondence.offers import Offers
from mixer_equiv.equivalence.correspondence.pieces import Candidate, Piece
from mixer_equiv.equivalence.correspondence.sites import kind_of, loose_kind_of, repeated
from mixer_equiv.equivalence.match.axes import axis_permutations
from mixer_equiv.equivalence.record.graph import Graph, Node

# How far outputs of one function may be apart, relative to one of them: rounding through a deep model.
SAME = 1e-9

# Open choices that may be doubted; older ones are sure.
_WINDOW = 8

# States from which changes are looked for, those from which two are, and changes of which two are tried.
_MOST_STATES = 96
_FEW_STATES = 4
_MOST_PAIRED = 24

# Values of B that are tried in the place of a node's result.
_MOST_TAKEN = 8

Bindings = tuple[tuple[Piece, Candidate], ...]


@dataclasses.dataclass(eq=False)
class Frame:
    """An open choice: where it was made, what is left to choose from, and what it bound."""

    at: int
    position: int
    choices: Iterator[list[Hit]]
    is_doubtful: bool  # not found as at the step that it repeats
    hits: list[Hit] = dataclasses.field(default_factory=list)

    @property
    def last(self) -> int:
        """The node of A whose value was found."""
        return self.hits[0].target.last

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(piece.name for hit in self.hits for piece, _ in hit.bindings))


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What was found.

    Attributes:
        bindings: By the names of A's parameters what each is of B.
        changes: What B computes in the place of nodes of A, in the order of the nodes.
        residual: How far the nearest output of B is, relative to it; None if A did not get to its output.
        output: B's path of this output.
        missing: The number of the node of A whose parameters were not found, None if all were.
        tries: How often a step was run.
        sums: How many sums were compared.
        dead_ends: How often nothing was found.
        seconds: The time that it took.
    """

    bindings: Mapping[str, Bindings]
    changes: tuple[Change, ...]
    residual: float | None
    output: str
    missing: int | None
    tries: int
    sums: int
    dead_ends: int
    seconds: float


@dataclasses.dataclass(frozen=True, eq=False)
class _State:
    """How far a search got, to go on from there."""

    at: int
    position: int
    values: dict[int, Any]
    known: dict[str, Tensor]
    bound: dict[str, Bindings]
    changes: dict[int, Change]
    found_at: dict[str, int]
    sites: tuple[int, ...]
    window: tuple[Frame, ...]


class Search:
    """One search."""

    def __init__(self, a: Graph, b: Graph, offers: Offers, inputs: Mapping[str, Tensor], limit: int) -> None:
        self.forward, self.offers, self.limit = Forward(a, inputs), offers, limit
        self.finder = HitFinder(self.forward, offers)
        self.bound: dict[str, Bindings] = {}
        self.found_at: dict[str, int] = {}  # the nodes of B by whose values parameters were found
        self.window: list[Frame] = []
        self.sites: list[int] = []  # the nodes at which parameters were found
        self.ways: dict[int, Way] = {}
        self.changes: dict[int, Change] = {}
        self.mixed = _mixed(a, self.forward.order)
        self.new_literals, self.literals = candidate_literals(a, b)
        self.reached, self.furthest, self.dead_ends = -1, list[_State](), 0

    def run(self) -> bool:
        """Whether A got to its output, which B has."""
        while self.finder.tries < self.limit:
            if self._repeat_change() or self._settle_next():
                if self.is_done:
                    return True
                continue
            self.dead_ends += 1
            self._note()
            if not any(frame.is_doubtful for frame in self.window) and self._change(self._all_changes()):
                continue
            if len(self.furthest) < _MOST_STATES and self._backtrack():
                continue
            if not self._change_somewhere():
                return False
        return False

    @property
    def is_done(self) -> bool:
        """Whether all was run, and the output is one of B."""
        if not self.forward.is_at_end:
            return False
        residual, _ = self.residual()
        return residual is not None and residual <= SAME

    def residual(self) -> tuple[float | None, str]:
        """How far A's output is from the nearest output of B of its shape, and the path of that one."""
        return _residual(self.forward, self.offers)

    def residual_on(self, offers: Offers, inputs: Mapping[str, Tensor]) -> float | None:
        """How far A's output, with what was found, is from B's on other parameters and inputs."""
        forward = Forward(self.forward.graph, inputs)
        forward.change(self.forward.instead)
        for name, parts in self.bound.items():
            again = [(piece, c if c.is_absent else c.of(offers.again(c.operand))) for piece, c in parts]
            forward.give({name: torch.from_numpy(assembled(again))})
        if forward.advance():
            return None
        return _residual(forward, offers)[0]

    # Parameters

    def _settle_next(self) -> bool:
        """Find what the next step needs, or get to the output."""
        if self.forward.advance():
            return self._take(self._frame())
        return self.is_done

    def _frame(self) -> Frame:
        number = self.forward.at
        self.sites = [site for site in self.sites if site < number]
        way = self._way_before(number, kind_of) or self._way_before(number, loose_kind_of)
        self.sites.append(number)
        return Frame(self.forward.at, self.finder.position, self.finder.choices(way), is_doubtful=way is None)

    def _way_before(self, number: int, kind: Callable[[Node], Hashable]) -> Way | None:
        """How the parameters of the step that this one repeats were found."""
        before = repeated([kind(self.forward.node(site)) for site in self.sites], kind(self.forward.node(number)))
        return None if before is None else self.ways.get(self.sites[before])

    def _take(self, frame: Frame) -> bool:
        hits = next(frame.choices, None)
        if hits is None:
            return False
        frame.is_doubtful |= bool(frame.hits)
        frame.hits = hits
        self._bind(frame)
        return True

    def _bind(self, frame: Frame) -> None:
        self.ways[frame.at] = self.finder.way_of(frame.hits)
        by_name: dict[str, list[tuple[Piece, Candidate]]] = {}
        for hit in frame.hits:
            for piece, candidate in hit.bindings:
                by_name.setdefault(piece.name, []).append((piece, candidate))
        for name, parts in by_name.items():
            self.bound[name] = tuple(parts)
            self.forward.give({name: torch.from_numpy(assembled(parts))})
        finder = self.finder
        finder.position = max([frame.position, *(hit.value.node for hit in frame.hits)])
        self.found_at |= {piece.name: hit.value.node for hit in frame.hits for piece, _ in hit.bindings}
        self._tell_finder()
        # What this value depends on, and not just number by number, is sure now.
        sure = self.mixed[frame.last]
        self.window = [*(open_ for open_ in self.window if open_.last not in sure), frame][-_WINDOW:]

    def _backtrack(self) -> bool:
        """Take the last open choice's next alternative."""
        while self.window:
            frame = self.window.pop()
            self._unbind(frame.names)
            self._go_back_to(frame.at)
            self.finder.position = frame.position
            if self._take(frame):
                return True
        return False

    def _unbind(self, names: Iterable[str]) -> None:
        bound = [name for name in names if name in self.bound]
        self.forward.forget(bound)
        for name in bound:
            del self.bound[name], self.found_at[name]
        self._tell_finder()

    def _tell_finder(self) -> None:
        """Tell the finder what is bound, and at which values of B it was found."""
        bound = (c for parts in self.bound.values() for _, c in parts)
        self.finder.taken = {c.operand.number for c in bound if not c.is_absent}
        self.finder.seen = set(self.found_at.values())

    def _go_back_to(self, at: int) -> None:
        """Go back to a node; what was changed from there on is as in A again."""
        self.forward.at = at
        kept = {number: change for number, change in self.changes.items() if number < at}
        if len(kept) < len(self.changes):
            self._set_changes(kept)

    # Changes

    def _note(self) -> None:
        """Keep the state if it is as far as any; changes are looked for from there."""
        at = self.forward.at
        if at > self.reached:
            self.reached, self.furthest = at, []
        if at == self.reached and len(self.furthest) < _MOST_STATES:
            self.furthest.append(self._state())

    def _state(self) -> _State:
        forward, finder = self.forward, self.finder
        return _State(
            forward.at,
            finder.position,
            dict(forward.values),
            dict(forward.known),
            dict(self.bound),
            dict(self.changes),
            dict(self.found_at),
            tuple(self.sites),
            tuple(self.window),
        )

    def _restore(self, state: _State) -> None:
        forward, finder = self.forward, self.finder
        forward.at, finder.position = state.at, state.position
        forward.values, forward.known, self.bound = dict(state.values), dict(state.known), dict(state.bound)
        self._set_changes(state.changes)
        self.found_at = dict(state.found_at)
        self._tell_finder()
        self.sites, self.window = list(state.sites), list(state.window)

    def _apply(self, change: Change) -> None:
        """Make a change, and go back to its node; parameters that are not taken any more are free."""
        self._set_changes({**self.changes, change.node: change})
        nodes = self.forward.graph.nodes
        needed = frozenset[str]().union(*(nodes[number].parameters for number in self.forward.order))
        self._unbind([name for name in self.bound if name not in needed])
        self.forward.at = min(self.forward.at, change.node)

    def _set_changes(self, changes: Mapping[int, Change]) -> None:
        self.changes = dict(changes)
        self.forward.change({number: change.instead for number, change in changes.items()})

    def _change(self, changes: Iterable[Change], steps: int = 1) -> bool:
        """Whether one of the changes lets the next steps be found, which proves it; earlier choices are sure then."""
        state: _State | None = None
        for change in changes:
            state = state or self._state()
            self._apply(change)
            if all(self._is_proved() for _ in range(steps)):
                self.window = self.window[-1:] if not self.forward.is_at_end else []
                self.reached, self.furthest = self.forward.at, []
                return True
            self._restore(state)
        return False

    def _is_proved(self) -> bool:
        """Whether the next step is found; only what nothing of A has yet counts."""
        self.finder.only_unseen = True
        try:
            return (self.forward.is_at_end and self.is_done) or self._settle_next()
        except (RuntimeError, ValueError, TypeError, IndexError):  # of a step that takes no such result
            return False
        finally:
            self.finder.only_unseen = False

    def _change_somewhere(self) -> bool:
        """Go on from the furthest states with one change; then with two."""
        states = self.furthest
        ways = ((partial(self._all_changes, few=True), 1), (self._all_changes, 1), (self._terms_left_out, 2))
        if any(self._change_from(states, changes, steps) for changes, steps in ways):
            return True
        for state in states[:_FEW_STATES]:
            self._go_on_from(state)
            for first in itertools.islice(self._all_changes(few=True), _MOST_PAIRED):
                self._apply(first)
                with contextlib.suppress(RuntimeError, ValueError, TypeError, IndexError):
                    self.forward.advance()
                    others = itertools.islice(self._all_changes(few=True), _MOST_PAIRED)
                    if self._change(change for change in others if change.node != first.node):
                        return True
                self._restore(state)
        if self._change_from(states, self._values_taken, 1):
            return True
        if states:
            self._restore(states[0])
        return False

    def _change_from(self, states: Sequence[_State], changes: Callable[[], Iterator[Change]], steps: int) -> bool:
        """Whether a change in one of these states is proved."""
        for state in states:
            self._go_on_from(state)
            if self._change(changes(), steps):
                return True
        return False

    def _go_on_from(self, state: _State) -> None:
        """Restore a state, in which no choice may be doubted any more."""
        self._restore(state)
        self.window = []

    def _terms_left_out(self) -> Iterator[Change]:
        return terms_left_out(Suspects(self.forward, self._suspects(), ()))

    def _values_taken(self) -> Iterator[Change]:
        """Values that B has next, in the place of suspects, the last suspect first."""
        outputs = {ref.node for ref in self.forward.graph.outputs.values()}
        for number in reversed(self._suspects()):
            node = self.forward.node(number)
            if operation_name(node) in MOVES or number in outputs:
                continue
            values = self.offers.values_after(self.finder.position, self.forward.size(number))
            unseen = [value for value in values if value.node not in self.finder.seen]
            for value in unseen[:_MOST_TAKEN]:
                theirs = self.offers.graph.nodes[value.node]
                whole = self.offers.array_of(value)
                if whole is None:
                    continue
                for array in axis_permutations(whole, _without_ones(node.shapes[0])):
                    tensor = torch.from_numpy(np.ascontiguousarray(array)).reshape(node.shapes[0])
                    yield taken_from(number, operation_name(node), tensor, operation_name(theirs))

    def _suspects(self) -> list[int]:
        """The missing step, or the output, and the nodes that lead to it from values that B has."""
        forward = self.forward
        is_at_end = forward.is_at_end
        todo = [ref.node for ref in forward.graph.outputs.values()] if is_at_end else [forward.at]
        missing = set() if is_at_end else set(todo)
        found: set[int] = set()
        while todo:
            number = todo.pop()
            node = forward.node(number)
            if number in found or not node.is_data or node.is_given:
                continue
            if number not in missing and any(map(self.offers.find, forward.results(number))):
                continue
            found.add(number)
            todo += [ref.node for ref in forward.takes(number)]
        return sorted(found)

    def _all_changes(self, *, few: bool = False) -> Iterator[Change]:
        """Those that were right at steps like the suspects, then all; if `few`, with numbers that A does not have."""
        numbers = [number for number in self._suspects() if number not in self.changes]
        literals = self.new_literals if few else self.literals
        known = {change.what for change in self.changes.values()}
        suspects = Suspects(self.forward, numbers, literals, self.new_literals, self.finder.next_with_one_axis())
        every = list(changes_of(suspects))
        yield from (change for change in every if change.what in known)
        yield from (change for change in every if change.what not in known)

    def _repeat_change(self) -> bool:
        """Make the changes that the steps needed which those before the next one repeat, if they lead on."""
        if not self.changes:
            return False
        self.forward.advance()
        suspects = [number for number in self._suspects() if number not in self.changes]
        kinds = {kind_of(self.forward.node(number)): change.what for number, change in self.changes.items()}
        wanted = {number: kinds[kind] for number in suspects if (kind := kind_of(self.forward.node(number))) in kinds}
        if not wanted:
            return False
        every = changes_of(Suspects(self.forward, list(wanted), self.literals, self.new_literals))
        return self._change(change for change in every if change.what == wanted.get(change.node))


def _residual(forward: Forward, offers: Offers) -> tuple[float | None, str]:
    ref = next(iter(forward.graph.outputs.values()))
    made = forward.value(ref).numpy()
    found = [
        (float(np.linalg.norm(made - wanted) / np.linalg.norm(wanted)), path)
        for path, wanted in offers.outputs.items()
        if wanted.shape == made.shape
    ]
    return min(found, default=(None, ""))


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)


def assembled(parts: Bindings | list[tuple[Piece, Candidate]]) -> np.ndarray:
    """A parameter of A, of what its pieces are of B."""
    whole = np.zeros(parts[0][0].whole)
    for piece, candidate in parts:
        piece.put(candidate.array, whole)
    return whole


def _mixed(graph: Graph, order: list[int]) -> dict[int, set[int]]:
    """For each node the earlier ones on which it depends by more than elementwise steps."""
    above: dict[int, set[int]] = {}
    mixed: dict[int, set[int]] = {}
    for number in order:
        node = graph.nodes[number]
        above[number], mixed[number] = set(), set()
        for source in {ref.node for ref in node.refs} & above.keys():
            before = above[source] | {source}
            above[number] |= before
            mixed[number] |= mixed[source]
            if operation_name(node) not in ELEMENTWISE:
                mixed[number] |= before
    return mixed


def found_by(
    a: Graph,
    b: Graph,
    parameters: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    b_inputs: Mapping[str, Tensor],
    *,
    limit: int = 200_000,
) -> tuple[Found, Search]:
    """Find A's parameters among these of B, all in float64; also the search, as it ended."""
    began = time.perf_counter()
    with torch.no_grad(), np.errstate(all="ignore"):
        search = Search(a, b, Offers(b, parameters, b_inputs), inputs, limit)
        is_done = search.run()
        residual, output = search.residual() if is_done else (None, "")
    forward, finder = search.forward, search.finder
    is_missing = not is_done and not forward.is_at_end
    found = Found(
        search.bound,
        tuple(change for _, change in sorted(search.changes.items())),
        residual,
        output,
        forward.at if is_missing else None,
        finder.tries,
        finder.sums,
        search.dead_ends,
        time.perf_counter() - began,
    )
    return found, search
