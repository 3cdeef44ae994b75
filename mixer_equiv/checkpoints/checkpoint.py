"""`Checkpoint`: a Mixer's weights with their layout and config.

Knows no file: `io` loads and saves.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from mixer_equiv.arrays.casting import cast
from mixer_equiv.arrays.interop import DTYPES, to_torch, unflatten
from mixer_equiv.arrays.lazy import LazyArrays, Spec, materialize, specs_of
from mixer_equiv.arrays.stacking import join_stacks
from mixer_equiv.checkpoints import validate
from mixer_equiv.checkpoints.infer import Statements, infer
from mixer_equiv.checkpoints.metadata import Metadata
from mixer_equiv.checkpoints.names import as_tree
from mixer_equiv.config import MixerConfig, Size
from mixer_equiv.errors import ConversionError
from mixer_equiv.layouts import Conventions, Layout, get_layout

# The source of a checkpoint that was read from no file.
IN_MEMORY = "arrays"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Checkpoint(Mapping[str, Any]):
    """Weights of one Mixer, by the names of their layout.

    `arrays` has the weights in NumPy by flat names. `load(lazy=True)` reads each only when it is used, and
    `specs` tells shapes and dtypes without reading. Results made of a lazy checkpoint are lazy too:
    arrays are read, converted and rounded one by one, when they are used or saved. Where the layout
    stacks parameters in one array, `arrays` has each under a name such as "kernels[3]", and `whole` has
    the stacks.

    As a mapping, a checkpoint has the names of `whole`; for a torch layout its values are tensors that
    share memory, so that `load_state_dict(checkpoint)` works. `params` is everything at once: a dict of
    tensors, or for Flax the nested dict that `apply({"params": ...})` takes.

    `config` has the conventions under which the weights are evaluated: `trained_with` if that is
    known, else those that the layout's code computes. `config_is_stated` tells a config that was given,
    or stood in the file, from an inferred one. `image_size_is_assumed` tells an image size that was
    guessed from the number of tokens. `assumed_from` is the name of the layout whose code's conventions
    `trained_with` are, where conversion carried these along for lack of better knowledge. `given` has
    the names of the parameters in the file. `notes` say what was stripped, left out or assumed on the way.
    """

    arrays: Mapping[str, np.ndarray]
    layout: Layout
    config: MixerConfig
    trained_with: Conventions | None
    config_is_stated: bool
    source: str
    notes: tuple[str, ...] = ()
    image_size_is_assumed: bool = False
    assumed_from: str | None = None
    given: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:
        array = self.whole[name]
        return to_torch(array) if self.layout.framework == "torch" else array

    def __iter__(self) -> Iterator[str]:
        return iter(self.whole)

    def __len__(self) -> int:
        return len(self.whole)

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        variant = f"Mixer-{self.config.name}" if self.config.name else "Mixer"
        return f"<Checkpoint {variant}, {len(self)} arrays in layout {self.layout.name}, from {self.source}>"

    @cached_property
    def whole(self) -> Mapping[str, np.ndarray]:
        """The arrays as files and modules hold them, with each stack as one array."""
        return join_stacks(self.arrays) if self.layout.stacks else self.arrays

    @property
    def params(self) -> dict[str, Any]:
        """A state_dict of torch tensors, or the nested dict that Flax's `apply` takes as "params"."""
        return unflatten(self.whole) if self.layout.framework == "flax" else dict(self)

    @property
    def num_parameters(self) -> int:
        """Number of elements of all arrays together."""
        return sum(spec.size for spec in self.specs.values())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Names of the arrays' dtypes."""
        return tuple(sorted({str(spec.dtype) for spec in self.specs.values()}))

    @property
    def specs(self) -> Mapping[str, Spec]:
        """Shape and dtype of each array; reads none."""
        return specs_of(self.arrays)

    def astype(self, dtype: Any) -> Checkpoint:
        """Round the weights to float16, bfloat16, float32 or float64, given by name or NumPy dtype.

        Raises `ConversionError` for another dtype, and if a finite value would become infinite; of a lazy
        checkpoint that shows when the array is used.
        """
        name = dtype
        if not isinstance(dtype, str | None):
            with contextlib.suppress(TypeError):
                name = np.dtype(dtype).name
        if name not in DTYPES:
            raise ConversionError(f"dtype is {name!r}; it must be one of {', '.join(DTYPES)}")
        return dataclasses.replace(self, arrays=cast(self.arrays, DTYPES[name]))

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, Any],
        *,
        layout: str | Layout | None = None,
        config: MixerConfig | None = None,
        image_size: Size | None = None,
        trained_with: Conventions | None = None,
        prefix: str | None = None,
        ignore: Collection[str] = (),
        rename: Mapping[str, str] | None = None,
        lazy: bool = False,
        source: str = IN_MEMORY,
        metadata: Mapping[str, Any] | None = None,
        called: Collection[str] = (),
        notes: Collection[str] = (),
    ) -> Checkpoint:
        """Find the layout, config and conventions of flat or nested arrays of any framework.

        A prefix such as "module." or "params/" is stripped, and arrays beside a nested prefix are left
        out; so is what wrappers, boxes and transforms put into names, and stacked blocks and copies for
        several devices are taken apart. `notes` says all of it. `prefix`, such as "ema", tells which of
        several sets of weights is meant. An optimizer's moments are not taken for weights, unless `prefix`
        says so. `ignore` has globs of names that are left out, such as "text.*". `rename` has parts of names
        and what they are called instead, such as {"classifier": "head"}. `metadata` are the fields of a file that
        `save` wrote. `called` are names from which the layout may know the `trained_with` conventions.
        `notes` are what is known of the arrays already, and come first among its notes.
        Completeness is not checked here: `check` does.

        Raises `LayoutError` if no layout or several fit, `ConversionError` for leaves that are no
        arrays of numbers, and `ConfigError` for sizes that contradict each other.
        """
        said = Statements(
            source=source,
            metadata=Metadata(metadata or {}, source),
            layout=layout,
            config=config,
            image_size=image_size,
            trained_with=trained_with,
            prefix=prefix,
            ignore=ignore,
            rename={} if rename is None else rename,
            called=called,
            notes=notes,
        )
        inferred = infer(as_tree(arrays), said)
        return cls(
            arrays=inferred.arrays if lazy else materialize(inferred.arrays),
            layout=inferred.layout,
            config=inferred.config,
            trained_with=inferred.trained_with,
            config_is_stated=inferred.config_is_stated,
            source=source,
            notes=(*notes, *inferred.notes),
            image_size_is_assumed=inferred.image_size_is_assumed,
            assumed_from=inferred.assumed_from,
            given=inferred.given,
        )

    def check(self, *, target: Layout | None = None, allow_missing: Collection[str] = ()) -> validate.Filled:
        """Check that the arrays fill the layout exactly, and return the parameters that are present.

        `allow_missing` are globs over canonical or own names: a parameter that they match may be absent or
        of another shape, and is then left out, with a note. Messages also give the names of the layout
        `target`. Raises one `ConversionError` with all that is wrong.
        """
        expected = validate.Expected(self.layout, self.config, self.config_is_stated, self.given)
        return validate.check(self.specs, expected, source=self.source, target=target, allow_missing=allow_missing)


def as_checkpoint(
    params: Mapping[str, Any],
    *,
    layout: str | Layout | None = None,
    config: MixerConfig | None = None,
    ignore: Collection[str] = (),
    rename: Mapping[str, str] | None = None,
) -> Checkpoint:
    """`params` as a `Checkpoint`: itself, if it is one already and nothing further is said of it."""
    params = as_tree(params)
    if not isinstance(params, Checkpoint):
        return Checkpoint.from_arrays(params, layout=layout, config=config, ignore=ignore, rename=rename)
    wanted = params.layout if layout is None else get_layout(layout)
    if config is None and wanted == params.layout and not ignore and not rename:
        return params
    assumed_from = params.assumed_from if config is None else None
    if config is None and params.config_is_stated:
        config = params.config
    found = Checkpoint.from_arrays(
        params.whole,
        layout=wanted,
        config=config,
        trained_with=params.trained_with,
        ignore=ignore,
        rename=rename,
        lazy=isinstance(params.arrays, LazyArrays),
        source=params.source,
        metadata={"layout": params.layout.name},
        notes=params.notes,
    )
    return dataclasses.replace(found, assumed_from=assumed_from)
