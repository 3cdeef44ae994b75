"""`Checkpoint`: a Mixer's weights with their layout and config; `load` and `save` for files."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mixer_equiv import containers, strict
from mixer_equiv.arrays import DTYPES, flatten, is_array, to_numpy, to_torch, unflatten
from mixer_equiv.config import AXES, MixerConfig, Size, config_from_axes
from mixer_equiv.errors import CheckpointError, ConfigError, ConversionError, LayoutError
from mixer_equiv.layouts import LAYOUTS, Binding, Conventions, Layout, Match, detect, get_layout


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Checkpoint(Mapping[str, Any]):
    """Weights of one Mixer, by the names of their layout.

    `arrays` holds them flat, in NumPy. Read as a mapping it gives them by the same flat names, as
    tensors for a torch layout, so that `load_state_dict(checkpoint)` works; they share memory with
    `arrays`. `params` is all of it at once: a dict of tensors, or for Flax the nested dict that
    `apply({"params": ...})` takes. `config` carries the conventions under which the
    weights are evaluated: `trained_with` if that is known, else what the layout's code computes.
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
        array = self.arrays[name]
        return to_torch(array) if self.layout.framework == "torch" else array

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        variant = f"Mixer-{self.config.name}" if self.config.name else "Mixer"
        return f"<Checkpoint {variant}, {len(self)} arrays in layout {self.layout.name}, from {self.source}>"

    @property
    def params(self) -> dict[str, Any]:
        """A state_dict of torch tensors, or the nested dict that Flax's `apply` takes as "params"."""
        return unflatten(self.arrays) if self.layout.framework == "flax" else dict(self)

    @property
    def num_parameters(self) -> int:
        """Numbers in all arrays together."""
        return sum(array.size for array in self.arrays.values())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Names of the dtypes that occur."""
        return tuple(sorted({str(array.dtype) for array in self.arrays.values()}))

    def astype(self, dtype: Any) -> Checkpoint:
        """The same weights rounded to float16, bfloat16, float32 or float64, by name or NumPy dtype.

        Raises `ConversionError` for another dtype, or if a finite value would become infinite.
        """
        name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
        if name not in DTYPES:
            raise ConversionError(f"dtype is {name!r}; it must be one of {', '.join(DTYPES)}")
        wanted = DTYPES[name]
        with np.errstate(over="ignore", invalid="ignore"):  # signalling NaNs turn quiet
            cast = {name: array.astype(wanted) for name, array in self.arrays.items()}
            lost = [name for name, array in cast.items() if np.any(np.isinf(array) & np.isfinite(self.arrays[name]))]
        if lost:
            names = ", ".join(lost[: strict.SHOWN])
            raise ConversionError(f"{wanted} cannot hold values of {names}: they would become infinite")
        return dataclasses.replace(self, arrays=cast)

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, Any],
        *,
        layout: str | Layout | None = None,
        config: MixerConfig | None = None,
        image_size: Size | None = None,
        source: str = "arrays",
        metadata: Mapping[str, Any] | None = None,
    ) -> Checkpoint:
        """Find the layout, config and conventions of flat or nested arrays of any framework.

        A prefix such as "module." or "params/" is stripped, and what lies beside a nested prefix
        is left out; `notes` says both. Nothing is checked for completeness here.

        Raises `LayoutError` if no layout or several fit, `ConversionError` for leaves that are no
        arrays of numbers, `ConfigError` for sizes that contradict each other.
        """
        leaves = dict(flatten(arrays))
        shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items() if is_array(leaf)}
        match = _detect(shapes, layout, source, (metadata or {}).get("layout"))
        own, notes = _strip(leaves, match.prefix)
        flat = {name: to_numpy(name, leaf) for name, leaf in own.items()}
        stated, trained_with = _statements(config, metadata or {}, match.layout, source)
        assumed = config is None and image_size is None and (metadata or {}).get("image_size_is_assumed", not stated)
        computed = trained_with or match.layout.computes
        sizes = match.layout.axis_sizes(match.num_blocks, {name: array.shape for name, array in flat.items()})
        if stated is None and not sizes.keys() >= set(AXES) - {"classes"}:
            raise strict.without_sizes(source, match.layout, match.num_blocks, flat, sizes)
        conventions = {"activation": computed.activation, "layer_norm_eps": computed.layer_norm_eps}
        try:
            found = stated or config_from_axes(sizes, match.num_blocks, **conventions)
            if image_size is not None:
                found = found.resized(image_size)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
        if assumed:
            grid, size = ("x".join(map(str, pair)) for pair in (found.grid_hw, found.image_hw))
            notes.append(f"{found.num_tokens} tokens are taken as {grid}, an image of {size}")
        return cls(flat, match.layout, found, trained_with, stated is not None, source, tuple(notes), bool(assumed))

    def check(
        self, *, target: Layout | None = None, allow_missing: Collection[str] = ()
    ) -> tuple[dict[str, Binding], list[str]]:
        """The parameters present, by canonical name, once they are known to fill the layout exactly.

        `allow_missing` are globs over canonical or own names: what they match may be absent or of
        another shape, and is then left out; the second result says so. `target` is the layout
        whose names the messages give as well. Raises one `ConversionError` with all that is wrong.
        """
        return strict.check(self, target=target, allow_missing=allow_missing)


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
    if config is None and wanted is params.layout:
        return params
    return Checkpoint.from_arrays(params.arrays, layout=wanted, config=config, source=params.source)


def load(
    path: str | os.PathLike[str],
    *,
    layout: str | Layout | None = None,
    config: MixerConfig | None = None,
    image_size: Size | None = None,
) -> Checkpoint:
    """Read a checkpoint file (.npz, .safetensors, .pt, .pth), its layout detected unless given.

    `image_size`, in pixels, is what shapes cannot tell; without it the squarest grid is assumed
    and noted. Raises `CheckpointError` for a file that cannot be read, `LayoutError` for arrays
    of no known layout, `ConfigError` for an image size of another number of tokens.
    """
    contents = containers.read(Path(path))
    return Checkpoint.from_arrays(
        contents.arrays,
        layout=layout,
        config=config,
        image_size=image_size,
        source=str(path),
        metadata=contents.metadata,
    )


def save(checkpoint: Mapping[str, Any], path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write a checkpoint, in the format that the suffix names, with its layout and config as metadata.

    A mapping that is no `Checkpoint` is taken as one by `Checkpoint.from_arrays`, and must fill its
    layout; what lies beside a nested prefix in it is not written. The file is written beside the
    target and renamed, so that the target is never half written; one that exists is kept unless
    `force`; a symbolic link is followed. Raises `CheckpointError` if it cannot be written.
    """
    path = Path(os.path.realpath(path))
    container = check_target(path, force=force)
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = as_checkpoint(checkpoint)
        checkpoint.check()
    arrays = {name: np.ascontiguousarray(array) for name, array in checkpoint.arrays.items()}
    with containers.replacing(path) as temporary:
        container.write(temporary, arrays, _metadata(checkpoint), checkpoint.layout.framework)


def check_target(path: Path, *, force: bool) -> containers.Container:
    """The format to write `path` in, once nothing that can be known beforehand stands in the way."""
    container = containers.container_for(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; give the name of a file")
    if path.exists() and not force:
        raise CheckpointError(f"{path} exists; pass force=True (--force) to replace it")
    if not path.parent.is_dir():
        raise CheckpointError(f"{path} cannot be written: there is no directory {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise CheckpointError(f"{path} cannot be written: no permission to write in {path.parent}")
    return container


def _metadata(checkpoint: Checkpoint) -> str:
    trained_with = checkpoint.trained_with
    return json.dumps(
        {
            "layout": checkpoint.layout.name,
            "config": checkpoint.config.to_dict(),
            "image_size_is_assumed": checkpoint.image_size_is_assumed,
            "trained_with": dataclasses.asdict(trained_with) if trained_with else None,
        }
    )


def _statements(
    config: MixerConfig | None, metadata: Mapping[str, Any], layout: Layout, source: str
) -> tuple[MixerConfig | None, Conventions | None]:
    """The config, and what the weights were trained with, as far as somebody says so.

    A config that is given states both; else the metadata speak, and else the layout does.
    """
    if config is not None:
        return config, Conventions(config.activation, config.layer_norm_eps, layout.computes.padding)
    try:
        stated = MixerConfig.from_dict(metadata["config"]) if metadata.get("config") else None
        trained_with = Conventions(**metadata["trained_with"]) if metadata.get("trained_with") else None
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{source} has metadata of mixer_equiv that cannot be understood: {error}") from error
    return stated, trained_with if "trained_with" in metadata else layout.trained_with


def _detect(
    shapes: Mapping[str, tuple[int, ...]], layout: str | Layout | None, source: str, written: str | None
) -> Match:
    """The layout found, or the given one if it is there, as `detect` tells.

    `written` is the layout's name in the file's metadata; it settles what names leave open.
    """
    known = list(LAYOUTS.values())
    if layout is None and written in LAYOUTS:
        with contextlib.suppress(LayoutError):
            return detect(shapes, [LAYOUTS[written]], shapes)
    try:
        return detect(shapes, known if layout is None else [get_layout(layout)], shapes)
    except LayoutError as error:
        message = str(error)
    if layout is not None:
        with contextlib.suppress(LayoutError):
            likely = detect(shapes, known, shapes).layout.name
            message = f"the arrays are not of the layout {get_layout(layout).name}, but by their names of {likely}"
    raise LayoutError(f"{source}: {message}")


def _strip(leaves: Mapping[str, Any], prefix: str) -> tuple[dict[str, Any], list[str]]:
    """What lies under the prefix's nesting, with the prefix off, and notes on what was done."""
    nesting = prefix[: prefix.rfind("/") + 1]
    inside = [name for name in leaves if name.startswith(nesting)]
    own = {name.removeprefix(prefix): leaves[name] for name in inside}
    if len(own) < len(inside):
        twice = sorted(name for name in inside if not name.startswith(prefix) and prefix + name in leaves)
        raise ConversionError(
            f"these are here both with and without the prefix {prefix!r}: {', '.join(twice[: strict.SHOWN])}",
            unexpected_keys=twice,
        )
    notes = []
    if prefix:
        notes.append(f"the prefix {prefix!r} was stripped from every name")
    beside = [name for name in leaves if not name.startswith(nesting)]
    if beside:
        more = ", ..." if len(beside) > 4 else ""
        notes.append(f"{len(beside)} entries beside {nesting!r} were left out: {', '.join(beside[:4])}{more}")
    return own, notes
