"""`Checkpoint`: a Mixer's weights with their layout and config; `load` and `save` for files."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mixer_equiv.arrays.casting import cast
from mixer_equiv.arrays.interop import DTYPES, to_torch, unflatten
from mixer_equiv.arrays.lazy import Spec, as_lazy, gathered, joined, specs
from mixer_equiv.checkpoints import formats, validate
from mixer_equiv.checkpoints.infer import Statements, find
from mixer_equiv.config import MixerConfig, Size
from mixer_equiv.errors import MAX_LISTED, CheckpointError, ConversionError, InexpressibleError
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
        return joined(self.arrays) if self.layout.stacks else self.arrays

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
        return specs(self.arrays)

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
        said = Statements(layout, config, image_size, trained_with, prefix, metadata or {}, called)
        found = find(arrays, said, source)
        return cls(
            found.arrays if lazy else gathered(found.arrays),
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


def load(
    path: str | os.PathLike[str],
    *,
    layout: str | Layout | None = None,
    config: MixerConfig | None = None,
    image_size: Size | None = None,
    trained_with: Conventions | None = None,
    prefix: str | None = None,
    lazy: bool = False,
    mmap: bool = False,
    verify: bool = True,
) -> Checkpoint:
    """Read a checkpoint: npz, safetensors (also sharded), .pt, msgpack, an orbax directory.

    The layout is detected unless given. `image_size`, in pixels, is what shapes cannot tell;
    without it the squarest grid is assumed and noted. `trained_with` are the conventions that the
    weights need, where nothing in the file or its name says them. Of several sets of weights in
    one file, `prefix` says which, such as "ema". With `lazy` an array is read whenever it is used,
    and `specs`, `config` and all else without reading any. Without `verify`, the CRCs of an npz are not checked.

    With `mmap` the arrays are parts of the mapped file, of which only what is used is ever read, and what is
    written to is private memory: the file stays as it is, and must not be changed meanwhile. CRCs
    are not checked then. What cannot be mapped (compressed npz, Orbax, big-endian numbers) is read.

    Raises `CheckpointError` for a file that cannot be read, `LayoutError` for arrays
    of no known layout, `ConfigError` for an image size of another number of tokens.
    """
    contents = formats.read(Path(path), mmap=mmap, verify=verify)
    return Checkpoint.from_arrays(
        contents.arrays,
        layout=layout,
        config=config,
        image_size=image_size,
        trained_with=trained_with,
        prefix=prefix,
        lazy=lazy,
        source=str(path),
        metadata=contents.metadata,
        called=_names_of(Path(path)),
    )


def _names_of(path: Path) -> list[str]:
    """What a file may be known by: a release named in the hub's config.json, its own name, its folders'."""
    path = path.absolute()
    folder = path if path.is_dir() else path.parent
    release = []
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        told = json.loads((folder / "config.json").read_text())
        release = [f"{told['architecture']}.{told['pretrained_cfg']['tag']}"]
    return [*release, path.name, *(parent.name for parent in list(path.parents)[:3])]


def save(
    checkpoint: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    max_shard_size: int | str | None = None,
    rename_prefix: Mapping[str, str] | None = None,
    fsync: bool = False,
) -> Path:
    """Write a checkpoint, in the format that the suffix names, with its layout and config as metadata.

    A mapping that is no `Checkpoint` is taken as one by `Checkpoint.from_arrays`, and must fill its
    layout; what lies beside a nested prefix in it is not written. The file is written beside the
    target and renamed, so that the target is never half written; one that exists is kept unless
    `force`; a symbolic link is followed. safetensors of more than `max_shard_size` bytes ("5GB") are
    split into shards with an index, as Hugging Face does; so are those whose path is an index.
    `rename_prefix` changes how names begin on their way into the file: {"": "backbone."} puts a
    prefix before all of them, {"head.": "fc."} renames one module. With `fsync` the disk has the
    file before the target gives way to it.

    npz, safetensors and shards are written array by array, msgpack too with a few copies of one, so that of a
    lazy checkpoint no more than three arrays are in memory, and what those are cast from; .pt and Orbax need
    all of them at once. What replaces a file has its permissions.

    Returns the path to read it by. Raises `CheckpointError` if it cannot be written.
    """
    given, path = Path(path), Path(os.path.realpath(path))
    container = check_target(path, force=force, max_shard_size=max_shard_size)
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = as_checkpoint(checkpoint)
        checkpoint.check()
    if checkpoint.layout.read_only:
        raise InexpressibleError(
            f"nothing is written in the layout {checkpoint.layout.name}: {checkpoint.layout.read_only}",
            reasons=[checkpoint.layout.read_only],
        )
    arrays = as_lazy(checkpoint.whole).renamed(renamed(checkpoint.whole, rename_prefix or {}))
    written = arrays, _metadata(checkpoint), checkpoint.layout.framework
    if container.several_files or max_shard_size is not None:
        limit = formats.parse_size(max_shard_size)
        path = formats.write_sharded(path, *written, limit, force=force, fsync=fsync)
    else:
        with formats.replacing(path, force=force, fsync=fsync) as temporary:
            container.write(temporary, *written)
    return path if given.is_symlink() else given.with_name(path.name)


def path_to_read(checkpoint: Checkpoint, path: Path, max_shard_size: int | str | None = None) -> Path:
    """The path that `save` would return: of the index where there would be shards."""
    if not formats.container_for(path).several_files and max_shard_size is None:
        return path
    return path.with_name(formats.sharded_path(path, checkpoint.whole, formats.parse_size(max_shard_size)).name)


def renamed(names: Collection[str], prefixes: Mapping[str, str]) -> dict[str, str]:
    """What each name becomes: the longest prefix that it begins with is replaced, once.

    Raises `ConversionError` for a prefix that no name has, and for two names that become one.
    """
    result = {}
    for name in names:
        old = max((old for old in prefixes if name.startswith(old)), key=len, default=None)
        result[name] = name if old is None else prefixes[old] + name.removeprefix(old)
    for old in prefixes:
        if not any(name.startswith(old) for name in names):
            raise ConversionError(f"rename_prefix {old!r}: no name begins so; they begin as {next(iter(names), '')}")
    twice = [name for name, count in Counter(result.values()).items() if count > 1]
    if twice:
        raise ConversionError(f"rename_prefix makes several names the same: {', '.join(twice[:MAX_LISTED])}")
    empty = [name for name, new in result.items() if "" in new.split("/")]
    if empty:
        raise ConversionError(f"rename_prefix leaves an empty name of {', '.join(empty[:MAX_LISTED])}")
    new = set(result.values())
    below = [name for name in new if any("/".join(name.split("/")[:n]) in new for n in range(1, name.count("/") + 1))]
    if below:
        names = ", ".join(sorted(below)[:MAX_LISTED])
        raise ConversionError(f"rename_prefix puts arrays below another, where no nested file can have both: {names}")
    return result


def check_target(path: Path, *, force: bool, max_shard_size: int | str | None = None) -> formats.Container:
    """The format to write `path` in, once nothing that can be known beforehand stands in the way."""
    container = formats.container_for(path)
    if max_shard_size is not None:
        formats.parse_size(max_shard_size)
        if not path.name.lower().endswith((".safetensors", ".safetensors.index.json")):
            raise CheckpointError(f"{path} cannot be sharded; only safetensors are")
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error
    if path.is_dir() and not container.is_directory:
        raise CheckpointError(f"{path} is a directory; give the name of a file")
    if path.exists() and not force:
        raise CheckpointError(f"{path} exists; pass force=True (--force) to replace it")
    if path.exists() and not formats.is_replaceable(path, container):
        raise CheckpointError(f"{path} exists and is no {container.name} checkpoint, so it is not replaced")
    index = path.with_name(f"{path.name}.index.json")
    if max_shard_size is None and os.path.exists(index):  # which no name is too long for
        raise CheckpointError(f"{index} is a sharded checkpoint of this name; choose another, or remove it first")
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
