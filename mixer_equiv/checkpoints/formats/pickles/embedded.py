"""Storages of torch that stand in a pickle as bytes, as the standard library's pickle of a tensor has them.

The bytes are what torch.save wrote before torch 1.6: three pickles that say so, one of the storage, one of its key, the
number of its elements, and these. Start at `storage_in_bytes`.
"""

from __future__ import annotations

import io
from typing import Any

from mixer_equiv.checkpoints.formats.pickles.machine import Budget, PickleError, unpickle
from mixer_equiv.checkpoints.formats.pickles.tensors import STORAGE_KINDS, Storage, StorageKind, storage_of

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001


def storage_in_bytes(budget: Budget, arguments: tuple[Any, ...]) -> Storage:
    """`torch.storage._load_from_bytes`: the one storage that such bytes hold."""
    match arguments:
        case (bytes() as data,):
            return _storage(budget, data)
    raise PickleError("a storage of no bytes")


def _storage(budget: Budget, data: bytes) -> Storage:
    budget.spend(copied=len(data))
    stream = io.BytesIO(data)  # which shares them
    magic, version, system = (unpickle(stream, {}, {}, budget=budget) for _ in range(3))
    if (magic, version) != (_MAGIC, _VERSION) or not isinstance(system, dict) or not system.get("little_endian"):
        raise PickleError("a storage in bytes that torch did not write, or not on a machine of this byte order")
    identity = unpickle(stream, {}, STORAGE_KINDS, lambda given: given, budget)
    unpickle(stream, {}, {}, budget=budget)  # its key
    key, kind = storage_of(identity)
    if not isinstance(kind, StorageKind):
        raise PickleError("a storage in bytes of no known class")
    count = int.from_bytes(stream.read(8), "little")
    numbers = data[stream.tell() :]
    expected = count * (kind.dtype.itemsize if kind.dtype is not None else 1)
    if len(numbers) != expected:
        raise PickleError(f"a storage in bytes declares {expected} bytes and has {len(numbers)}")
    return Storage(key, kind, len(numbers), numbers)
