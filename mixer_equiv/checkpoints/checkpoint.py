"""`Checkpoint`: a Mixer's weights with their layout and config. Knows no files: those are for `io`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from mixer_equiv.arrays.casting import cast
from mixer_equiv.arrays.interop import DTYPES, to_torch, unflatten
from mixer_equiv.arrays.lazy import Spec, materialize, specs_of
from mixer_equiv.arrays.stacking import join_stacks
from mixer_equiv.checkpoints import validate
from mixer_equiv.checkpoints.infer import Statements, find
from mixer_equiv.checkpoints.metadata import Metadata
from mixer_equiv.config import MixerConfig, Size
from mixer_equiv.errors import ConversionError
from mixer_equiv.layouts import Binding, Conventions, Layout, get_layout


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Checkpoint(Mapping[str, Any]):
    """Weights of one Mixer, by the names of their layout.

    `arrays` holds them flat, in NumPy; `load(lazy=True)` reads each only when it is used, and
    `specs` tells shapes and dtypes without reading. What is made of a lazy checkpoint is lazy too: it
    is read, converted and rounded array by array, when it is used or saved. Where the layout stacks
    parameters in one array, each has its own name there, such as "kernels[3]", and `whole` has the
    stacks. Read as a mapping it gives the latter by the same flat names, as tensors for a torch layout, so that
    `load_state_dict(checkpoint)` works; they share memory. `params` is all of it at once: a dict of
    tensors, or for Flax the nested dict that `apply({"params": ...})` takes.
    `config` carries the conventions under which the weights are evaluated: `trained_with` if that is
    known, else what the layout's code computes.
    `config_is_stated` tells a config that was given, or stood in the file, from one inferred, and
    `image_size_is_assumed` whether it had to be guessed from the number of tokens.
    `notes` say what was stripped, left out or assumed on the way.
    """

    arrays: Mapping[str, np.ndarray]
    layout: Layout
    config: MixerConfig
    trained_with: Conventions | None
    config_is_stated: bool
    source: str
    notes: tuple[str, ...] = ()
    image_size_is_assumed: bool = False

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
        """The arrays as files and modules hold them: those of one stack as one array."""
        return join_stacks(self.arrays) if self.layout.stacks else self.arrays

    @property
    def params(self) -> dict[str, Any]:
        """A state_dict of torch tensors, or the nested dict that Flax's `apply` takes as "params"."""
        return unflatten(self.whole) if self.layout.framework == "flax" else dict(self)

    @property
    def num_parameters(self) -> int:
        """Numbers in all arrays together."""
        return sum(spec.size for spec in self.specs.values())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Names of the dtypes that occur."""
        return tuple(sorted({str(spec.dtype) for spec in self.specs.values()}))

    @property
    def specs(self) -> Mapping[str, Spec]:
        """Shape and dtype of each array, none of them read."""
        return specs_of(self.arrays)

    def astype(self, dtype: Any) -> Checkpoint:
        """The same weights rounded to float16, bfloat16, float32 or float64, by name or NumPy dtype.

        Raises `ConversionError` for another dtype, or if a finite value would become infinite: of a lazy
        checkpoint, when it is used.
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
        lazy: bool = False,
        source: str = "arrays",
        metadata: Mapping[str, Any] | None = None,
        called: Collection[str] = (),
    ) -> Checkpoint:
        """Find the layout, config and conventions of flat or nested arrays of any framework.

        A prefix such as "module." or "params/" is stripped, and what lies beside a nested prefix
        is left out; `notes` says both. Where several sets of weights are there, `prefix` says which,
        such as "ema". An optimizer's moments are never taken for weights. `called` are names from
        which the layout may know the `trained_with` conventions. Nothing is checked for completeness here.

        Raises `LayoutError` if no layout or several fit, `ConversionError` for leaves that are no
        arrays of numbers, `ConfigError` for sizes that contradict each other.
        """
        said = Statements(Metadata(metadata or {}, source), layout, config, image_size, trained_with, prefix, called)
        found = find(arrays, said, source)
        return cls(
            found.arrays if lazy else materialize(found.arrays),
            found.layout,
            found.config,
            found.trained_with,
            found.config_is_stated,
            source,
            found.notes,
            found.image_size_is_assumed,
        )

    def check(
        self, *, target: Layout | None = None, allow_missing: Collection[str] = ()
    ) -> tuple[dict[str, Binding], list[str]]:
        """The parameters present, by canonical name, once they are known to fill the layout exactly.

        `allow_missing` are globs over canonical or own names: what they match may be absent or of
        another shape, and is then left out; the second result says so. `target` is the layout
        whose names the messages give as well. Raises one `ConversionError` with all that is wrong.
        """
        expected = validate.Expected(self.layout, self.config, self.config_is_stated)
        return validate.check(self.specs, expected, source=self.source, target=target, allow_missing=allow_missing)


def as_checkpoint(
    params: Mapping[str, Any], *, layout: str | Layout | None = None, config: MixerConfig | None = None
) -> Checkpoint:
    """`params` as a `Checkpoint`; one that is a `Checkpoint` already is reread only if told otherwise."""
    if not isinstance(params, Mapping):
        raise ConversionError(
            f"found a {type(params).__name__}; expected arrays by name, such as model.state_dict() or Flax params"
        )
    if not isinstance(params, Checkpoint):
        return Checkpoint.from_arrays(params, layout=layout, config=config)
    wanted = params.layout if layout is None else get_layout(layout)
    if config is None and wanted == params.layout:
        return params
    if config is None and params.config_is_stated:
        config = params.config
    metadata = {"layout": params.layout.name}
    return Checkpoint.from_arrays(params.whole, layout=wanted, config=config, source=params.source, metadata=metadata)
