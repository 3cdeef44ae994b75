"""`HitFinder`: for what a step of A needs, the operands of B with which its result is a value that B has.

Start at `HitFinder.choices`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mixer_equiv.equivalence.correspondence.flow import parts_in_flow
from mixer_equiv.equivalence.correspondence.forward import Forward
from mixer_equiv.equivalence.correspondence.kinds import JOINED, MOVES, SELECTIONS, operation_name
from mixer_equiv.equivalence.correspondence.offers import Made, Offers
from mixer_equiv.equivalence.correspondence.pieces import (
    ABSENT,
    Candidate,
    Operand,
    Piece,
    cut_splits,
    is_in_order,
    refined,
    splits_of,
)
from mixer_equiv.equivalence.correspondence.targets import Target
from mixer_equiv.equivalence.match.axes import axis_orders, reorder_axes

# Operands that are tried before all others: those that B uses next.
_NEAR = 16

# Operands that are tried one by one where no sum tells them.
_FEW = 8

# Further steps that B may have in one with the step that needs a parameter.
_EXTENT = 4

# Parameters of one step that B may lack.
_MOST_ABSENT = 2

# Hits of one part that are combined with those of the others.
_MOST_HITS = 60


@dataclasses.dataclass(frozen=True, eq=False)
class Hit:
    """Candidates for the pieces of a target, and the value of B that they make."""

    target: Target
    candidates: tuple[Candidate, ...]
    value: Made

    @property
    def bindings(self) -> tuple[tuple[Piece, Candidate], ...]:
        return tuple(zip(self.target.pieces, self.candidates, strict=True))


@dataclasses.dataclass(frozen=True)
class Hint:
    """How a piece was found at the step that this one repeats: which operand of those that were free, and its axes.

    `sizes` is None where axes were not taken apart, so that they may be longer or shorter now.
    """

    piece: Piece
    rank: int
    is_part: bool
    sizes: tuple[int, ...] | None
    order: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Way:
    """How a step's parameters were found.

    Attributes:
        length: The number of nodes that were taken together.
        places: The places of each target.
        hints: How each piece of each target was found.
        with_computed: Whether B computes an operand.
    """

    length: int
    places: tuple[np.ndarray | None, ...]
    hints: tuple[tuple[Hint, ...], ...]
    with_computed: bool


class HitFinder:
    """Looks for A's parameters in what B offers.

    Attributes:
        position: The node of B that was reached.
        taken: The numbers of the operands that are bound.
        seen: The nodes of B whose values were found already.
        with_computed: Whether what B computes of its parameters counts as well.
        only_unseen: Whether values that were found already count for nothing, and only what B uses next is tried.
        tries: How often a step was run to see what it makes.
        sums: How many sums were compared.
    """

    def __init__(self, forward: Forward, offers: Offers) -> None:
        self.forward, self.offers = forward, offers
        self.position = -1
        self.taken: set[int] = set()
        self.seen: set[int] = set()
        self.only_unseen = False
        self.with_computed = True
        self.tries = self.sums = 0
        nodes = forward.graph.nodes
        moved = [node for node in nodes if operation_name(node) in MOVES and node.refs]
        self._splits = splits_of((forward.graph.shape(node.refs[0]), node.shapes[0]) for node in moved)
        self._arrangements: dict[tuple[object, ...], list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
        self._flows: dict[int, list[np.ndarray]] = {}

    # Ways to bind what a step needs

    def choices(self, way: Way | None = None) -> Iterator[list[Hit]]:
        """Ways to find what the next step needs, the likeliest first: as before, whole, in parts, with what follows."""
        self.with_computed = way is None or way.with_computed
        hinted = self._as_before(way) if way else None
        if hinted:
            yield hinted
        for with_computed in (False, True):
            for group in self.groups():
                is_found = False
                for hits in self._of_group(self._whole(group), with_computed):
                    is_found = True
                    yield hits
                if is_found:
                    return
        if not self.only_unseen:
            yield from self._without_some()

    def _of_group(self, whole: Target, with_computed: bool) -> Iterator[list[Hit]]:
        """Ways to find what these nodes need among B's parameters and parts of them, or also what B computes."""
        self.with_computed = with_computed
        is_found = False
        for hit in self._hits(whole):
            is_found = True
            yield [hit]
            self.with_computed = with_computed
        # Also if it was found: parts in another order have the same elements, and only a later step tells.
        targets = self._cut(whole)
        for hits in self._together(targets, whole_is_found=is_found) if targets else ():
            yield hits
            self.with_computed = with_computed

    def _without_some(self) -> Iterator[list[Hit]]:
        """Hits with parameters that B does not have: biases of 0 and scales of 1."""
        whole = self._whole(next(self.groups()))
        flat = [i for i, piece in enumerate(whole.pieces) if len(piece.shape) == 1]
        for count in range(1, min(len(flat), _MOST_ABSENT) + 1):
            for some in itertools.combinations(flat, count):
                for numbers in itertools.product((0.0, 1.0), repeat=count):
                    absent = {i: _constant(whole.pieces[i], n) for i, n in zip(some, numbers, strict=True)}
                    yield from ([hit] for hit in self._hits(whole, (False,), absent))

    def next_with_one_axis(self) -> list[Operand]:
        """The parameters with one axis that nothing has, those that B uses next first."""
        sizes = [size for size in self.offers.sizes() if size > 1]
        found = [operand for size in sizes for operand in self._free(size, False) if operand.array.ndim == 1]
        return sorted(found, key=lambda o: self.offers.next_use(o, self.position))[:_FEW]

    def groups(self) -> Iterator[tuple[int, ...]]:
        """The next step; then with what follows it that B may compute together with it, or on a part of it alone."""
        order = self.forward.rest
        group: tuple[int, ...] = (order[0],)
        yield group
        counted = 0
        while counted < _EXTENT:
            after = next((n for n in order if n not in group and self._continues(n, group)), None)
            if after is None:
                return
            group = (*group, after)
            if operation_name(self.forward.node(after)) not in MOVES:
                counted += 1
                yield group

    def _continues(self, number: int, group: tuple[int, ...]) -> bool:
        name = operation_name(self.forward.node(number))
        if name not in JOINED:
            return False
        sources = [ref.node for ref in self.forward.node(number).refs]
        ready = all(s in group or s in self.forward.values or not self.forward.node(s).is_data for s in sources)
        is_whole = name in SELECTIONS or self.forward.size(number) == self.forward.size(group[-1])
        return group[-1] in sources and ready and is_whole

    def _whole(self, group: tuple[int, ...]) -> Target:
        names = sorted(set().union(*map(self.forward.unknown, group)))
        return Target(self.forward, group, tuple(Piece(name, self.forward.shape_of(name)) for name in names))

    def way_of(self, hits: Sequence[Hit]) -> Way:
        """How these hits, which are not bound yet, were found, so that the step that repeats this one finds its own."""
        self.with_computed = any(c.operand.is_computed for hit in hits for c in hit.candidates)
        hints = tuple(tuple(self._hint(piece, c) for piece, c in hit.bindings) for hit in hits)
        return Way(len(hits[0].target.group), tuple(hit.target.places for hit in hits), hints, self.with_computed)

    def _hint(self, piece: Piece, candidate: Candidate) -> Hint:
        operand = candidate.operand
        is_free = operand.number not in self.taken and not candidate.is_absent
        rank = self._free(piece.size, operand.is_part).index(operand) if is_free else -1
        sizes = None if candidate.sizes == piece.shape else candidate.sizes
        return Hint(piece, rank, operand.is_part, sizes, candidate.order)

    def _offered(self, size: int, is_part: bool) -> list[Operand]:
        every = self.offers.operands(size)
        return [o for o in every if o.is_part == is_part and (self.with_computed or not o.is_computed)]

    def _free(self, size: int, is_part: bool) -> list[Operand]:
        """The operands of this size that are not bound, those that B uses next first."""
        found = [o for o in self._offered(size, is_part) if o.number not in self.taken]
        return sorted(found, key=lambda o: (self.offers.next_use(o, self.position), o.number))

    def _as_before(self, way: Way) -> list[Hit] | None:
        group = next((g for g in self.groups() if len(g) == way.length), None)
        if group is None:
            return None
        names = sorted(set().union(*map(self.forward.unknown, group)))
        hits = []
        for places, hints in zip(way.places, way.hints, strict=True):
            if len(hints) != len(names):
                return None
            told = [self._told(name, hint) for name, hint in zip(names, hints, strict=True)]
            bindings = [binding for binding in told if binding is not None]
            if len(bindings) < len(told):
                return None
            target = Target(self.forward, group, tuple(piece for piece, _ in bindings), places)
            found = self._verified(target, [candidate for _, candidate in bindings])
            if not found:
                return None
            hits += found[:1]
        return hits if self._are_distinct(hits) else None

    def _told(self, name: str, hint: Hint) -> tuple[Piece, Candidate] | None:
        """The piece and the candidate that a hint tells for a parameter, None if it tells nothing here."""
        whole = self.forward.shape_of(name)
        if whole != hint.piece.whole and (hint.piece.is_part or hint.sizes or len(whole) != len(hint.piece.whole)):
            return None
        piece = dataclasses.replace(hint.piece, name=name, whole=whole)
        free, sizes = self._free(piece.size, hint.is_part), hint.sizes or piece.shape
        if not 0 <= hint.rank < len(free) or hint.order not in axis_orders(sizes, free[hint.rank].array.shape):
            return None
        return piece, Candidate(free[hint.rank], sizes, hint.order, piece.shape)

    # Parts

    def _cut(self, whole: Target) -> list[Target]:
        """The target in the parts that A itself tells apart."""
        last = whole.last
        if last not in self._flows:
            self._flows[last] = parts_in_flow(self.forward.graph, self.forward.order, last, self.forward.value)
        flow = self._flows[last]
        if not flow:
            return []
        names = [piece.name for piece in whole.pieces]
        pieces = self.forward.cut(last, whole.group, names, flow)
        return [
            Target(self.forward, whole.group, tuple(found), places)
            for found, places in zip(pieces, flow, strict=False)
            if len(places) in self.offers.by_size
        ]

    def _together(self, targets: list[Target], *, whole_is_found: bool) -> Iterator[list[Hit]]:
        """Hits for all parts, with different operands, those that are laid out alike and in B's order first.

        A's parts are looked for among whole operands of B, and among parts only if the whole has been found, so that
        B has the same parts in another order.
        """
        found = [list(itertools.islice(self._hits(target, (whole_is_found,)), _MOST_HITS)) for target in targets]
        for hits in sorted(filter(self._are_distinct, itertools.product(*found)), key=_unlikeliness):
            yield list(hits)

    def _are_distinct(self, hits: Sequence[Hit]) -> bool:
        used = [c.operand.number for hit in hits for c in hit.candidates if not c.is_absent]
        return len(set(used)) == len(used)

    # Hits of one target

    def _hits(
        self, target: Target, parts: tuple[bool, ...] = (False, True), fixed: Mapping[int, Candidate] | None = None
    ) -> Iterator[Hit]:
        """Candidates with which the target's result is a value of B, of whole operands or `parts`.

        Where the result is affine in the pieces, its sum is known for all candidates at once by one gradient, and only
        what has the sum of a value is run. Else a piece is fixed to each of its candidates in turn.
        """
        fixed = fixed or {}
        point = [fixed[i].array if i in fixed else zeros for i, zeros in enumerate(target.zeros)]
        open_ = [i for i in range(len(point)) if i not in fixed]
        base = target.run(point)
        if base.size not in self.offers.by_size:
            return
        if not open_:
            yield from self._verified(target, [fixed[i] for i in range(len(point))])
            return
        if target.is_affine(base, point, open_):
            weights = target.weights(point, open_)
            for is_part in parts:
                yield from self._by_sums(target, base, weights, open_, fixed, is_part)
            return
        first = self._to_be_fixed(target, point, open_)
        used = {candidate.operand.number for candidate in fixed.values()}
        for operand in self._free(target.pieces[first].size, False)[:_FEW]:
            if operand.number not in used:
                for candidate in self._arranged(target.pieces[first], operand):
                    yield from self._hits(target, (False,), {**fixed, first: candidate})

    def _to_be_fixed(self, target: Target, point: Sequence[np.ndarray], open_: Sequence[int]) -> int:
        """The piece to fix first: one after which the result bends, else one without which it is affine."""
        rng = np.random.default_rng(2)
        somewhere = [rng.uniform(0.5, 1.5, array.shape) if i in open_ else array for i, array in enumerate(point)]
        base = target.run(somewhere)
        for i in open_:
            if not target.is_affine(base, somewhere, [i]):
                return i
        for i in open_:
            if target.is_affine(base, somewhere, [j for j in open_ if j != i]):
                return i
        return max(open_, key=lambda i: target.pieces[i].size)

    def _by_sums(
        self,
        target: Target,
        base: np.ndarray,
        weights: Sequence[np.ndarray],
        open_: Sequence[int],
        fixed: Mapping[int, Candidate],
        is_part: bool,
    ) -> Iterator[Hit]:
        """Hits among the candidates, worked out only as they are asked for: what B uses next first."""
        big = max(range(len(open_)), key=lambda i: target.pieces[open_[i]].size)
        for operands in self._helpings([target.pieces[i] for i in open_], big, is_part):
            lists = [
                [c for operand in some for c in self._arranged(target.pieces[i], operand)]
                for i, some in zip(open_, operands, strict=True)
            ]
            if not all(lists):
                continue
            totals = np.asarray(float(base.sum()))
            for place, (w, candidates) in enumerate(zip(weights, lists, strict=True)):
                totals = totals + _sums(w, candidates).reshape([-1 if j == place else 1 for j in range(len(lists))])
            self.sums += totals.size
            for at in np.argwhere(self.offers.by_size[base.size].may_have(totals)):
                chosen = {o: lists[i][at[i]] for i, o in enumerate(open_)} | dict(fixed)
                candidates = [chosen[i] for i in range(len(target.pieces))]
                used = [c.operand.number for c in candidates if not c.is_absent]
                if len(set(used)) == len(used):
                    yield from self._verified(target, candidates)

    def _helpings(self, pieces: Sequence[Piece], big: int, is_part: bool) -> Iterator[list[list[Operand]]]:
        """Operands for each piece: for the biggest those that B uses next, then all, then those that are taken."""
        free = [self._free(piece.size, is_part) for piece in pieces]
        for some in (free[big][:_NEAR],) if self.only_unseen else (free[big][:_NEAR], free[big][_NEAR:]):
            if some:
                yield [some if i == big else operands for i, operands in enumerate(free)]
        if not self.only_unseen:
            every = [self._offered(piece.size, is_part) for piece in pieces]
            taken = [o for o in every[big] if o.number in self.taken]
            if taken:
                yield [taken if i == big else operands for i, operands in enumerate(every)]

    def _arranged(self, piece: Piece, operand: Operand) -> list[Candidate]:
        """The ways, each once, to lay an operand out as a piece; without another order of axes first."""
        key = piece.shape, piece.axis, piece.indices is None, operand.array.shape
        if key not in self._arrangements:
            shape = operand.array.shape
            numbers = np.arange(operand.array.size).reshape(shape)
            splits = self._splits
            if piece.is_part:
                length = piece.whole[piece.axis]
                kept = piece.shape[piece.axis]
                splits = {**splits, kept: (*splits.get(kept, ()), *cut_splits(splits, length, kept))}
            found: dict[bytes, tuple[tuple[int, ...], tuple[int, ...]]] = {}
            for sizes in refined(piece.shape, splits, shape):
                for order in axis_orders(sizes, shape):
                    found.setdefault(reorder_axes(numbers, sizes, order).tobytes(), (sizes, order))
            self._arrangements[key] = sorted(found.values(), key=lambda way: not is_in_order(way[1]))
        return [Candidate(operand, sizes, order, piece.shape) for sizes, order in self._arrangements[key]]

    def _verified(self, target: Target, candidates: Sequence[Candidate]) -> list[Hit]:
        self.tries += 1
        values = self.offers.find(target.run([c.array for c in candidates]))
        values = [v for v in values if not (self.only_unseen and v.node in self.seen)]
        if not values:
            return []
        return [Hit(target, tuple(candidates), min(values, key=lambda v: (v.node <= self.position, v.node)))]


def _constant(piece: Piece, number: float) -> Candidate:
    operand = Operand(ABSENT, np.full(piece.shape, number), (), None, -1)
    return Candidate(operand, piece.shape, tuple(range(len(piece.shape))), piece.shape)


def _unlikeliness(hits: Sequence[Hit]) -> tuple[int, list[int]]:
    layouts = {(hit.candidates[0].sizes, hit.candidates[0].order) for hit in hits}
    return len(layouts), [hit.value.node for hit in hits]


def _sums(weights: np.ndarray, candidates: Sequence[Candidate]) -> np.ndarray:
    """What each candidate adds to the sum; the weights are laid out as the operands are, and not the reverse."""
    found = np.empty(len(candidates))
    laid: dict[tuple[object, ...], np.ndarray] = {}
    for i, c in enumerate(candidates):
        key = c.sizes, c.order
        if key not in laid:
            laid[key] = np.ascontiguousarray(weights.reshape(c.sizes).transpose(c.order)).reshape(-1)
        found[i] = laid[key] @ c.operand.array.reshape(-1)
    return found
