"""Files, and addresses, that people give for a checkpoint and that are none: what they are, and what to do.

One table. Start at `refusal`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from mixer_equiv.checkpoints.formats.base import zip_names
from mixer_equiv.errors import summarize

_HEAD_BYTES = 4096


class Kind(NamedTuple):
    """A kind of file: whether one is of it, by how it begins, and a sentence with {path}, or {quoted} in code."""

    begins: Callable[[bytes], bool]
    words: str


def _with(*magics: bytes, at: int = 0) -> Callable[[bytes], bool]:
    return lambda head: head[at:].startswith(magics)


WITHOUT_NAMES = (
    "without names, one behind the other, as eqx.tree_serialise_leaves writes them; load it by "
    "eqx.tree_deserialise_leaves where it was written, and save its arrays by name: np.savez('weights.npz', **arrays)"
)
_UNPACK = "unpack it, and give the file in it"

KINDS: Mapping[str, Kind] = {
    "git-lfs": Kind(
        _with(b"version https://git-lfs"),
        "is a pointer of git-lfs, which stands for a file that was not fetched; run `git lfs pull` in its folder",
    ),
    "web page": Kind(
        lambda head: head.lstrip().lower().startswith((b"<!doctype html", b"<html")),
        "is a web page, such as a server sends in place of a file; fetch the file itself again",
    ),
    "tar": Kind(_with(b"ustar", at=257), f"is a tar archive; {_UNPACK}: tar xf {{path}}"),
    "gzip": Kind(
        _with(b"\x1f\x8b"),
        f"is compressed by gzip; {_UNPACK}: tar xzf {{path}}, or gunzip {{path}}",
    ),
    "bzip2": Kind(_with(b"BZh"), f"is compressed by bzip2; {_UNPACK}: tar xjf {{path}}, or bunzip2 {{path}}"),
    "xz": Kind(_with(b"\xfd7zXZ\0"), f"is compressed by xz; {_UNPACK}: tar xJf {{path}}, or unxz {{path}}"),
    "zlib": Kind(
        _with(*(bytes([0x78, level]) for level in (0x01, 0x5E, 0x9C, 0xDA))),
        "is compressed by zlib, as joblib.dump(..., compress=True) writes it; load it where it was written, and save "
        "its arrays by name: np.savez('weights.npz', **joblib.load({quoted}))",
    ),
    "Equinox": Kind(
        lambda head: head.startswith(b"{") and b"\n\x93NUMPY" in head,
        f"is a line of JSON and arrays {WITHOUT_NAMES}",
    ),
    "zstd": Kind(_with(b"\x28\xb5\x2f\xfd"), f"is compressed by zstd; {_UNPACK}: zstd -d {{path}}"),
    "7z": Kind(_with(b"7z\xbc\xaf\x27\x1c"), f"is an archive of 7-Zip; {_UNPACK}: 7z x {{path}}"),
    "HDF5": Kind(
        _with(b"\x89HDF\r\n\x1a\n"),
        "is HDF5, as Keras writes it, which is not read; write its arrays by name: np.savez('weights.npz', **arrays)",
    ),
    "GGUF": Kind(_with(b"GGUF"), "is GGUF, which holds language models and is not read"),
    "TFLite": Kind(
        _with(b"TFL3", at=4), "is a model of TensorFlow Lite, which is not read; give what it was made from"
    ),
}

# Kinds of zip archives: what is in the name of a member, and a sentence as in `KINDS`.
ARCHIVES: Mapping[str, tuple[re.Pattern[str], str]] = {
    "torch.export": (
        re.compile(r"/data/weights/|(^|/)serialized_exported_program\.json$"),
        "is a program of torch.export, which is not read; save its weights: "
        "torch.save(torch.export.load({quoted}).state_dict, 'weights.pt')",
    ),
}

# Addresses, and how to fetch what is there.
ADDRESSES: Mapping[str, str] = {
    "gs": "gcloud storage cp {address} .",
    "s3": "aws s3 cp {address} .",
    "hf": "huggingface-cli download {rest}",
    "http": "curl -LO {address}",
    "https": "curl -LO {address}",
}
_ADDRESS = re.compile(r"(\w+):/+(.*)", re.DOTALL)


def address_refusal(path: Path) -> str | None:
    """What to do with an address in place of a path, both slashes of which a `Path` has lost; None for a path."""
    match = _ADDRESS.fullmatch(str(path))
    if match is None or match[1].lower() not in ADDRESSES:
        return None
    address = f"{match[1]}://{match[2]}"
    command = ADDRESSES[match[1].lower()].format(address=address, rest=match[2])
    return f"{address} is an address, and files are read; fetch it, and give the file: {command}"


def refusal(path: Path) -> str | None:
    """What a file is that no reader knows, and what to do with it; None if that is not known either."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    for kind in KINDS.values():
        if kind.begins(head):
            return f"{path} {_filled(kind.words, path)}"
    names = zip_names(path)
    for part, words in ARCHIVES.values():
        if any(map(part.search, names)):
            return f"{path} {_filled(words, path)}"
    if names:
        return f"{path} is a zip archive of {summarize(names)}; {_UNPACK}: unzip {path}"
    return None


def _filled(words: str, path: Path) -> str:
    return words.format(path=path, quoted=repr(str(path)))
