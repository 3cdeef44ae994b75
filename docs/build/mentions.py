"""Links from names in the text to where the reference shows them: `MixerConfig`, `mixer_equiv.verify`."""

from __future__ import annotations

import re
from functools import cache

from docs.build.public_names import public_names

# A piece of code, with what may enclose it and then has a link or a place of its own.
_CODE = re.compile(r"<(?P<skip>a|autoref|h[1-6]|pre)\b.*?</(?P=skip)>|<code>(?P<name>[\w.]+)</code>", re.DOTALL)


def link_mentions(html: str) -> str:
    """The page with references in place of public names in code; those of links and headings stay as they are."""
    return _CODE.sub(_reference, html)


def _reference(found: re.Match[str]) -> str:
    path = _paths().get(found["name"] or "")
    return f'<autoref identifier="{path}">{found[0]}</autoref>' if path else found[0]


@cache
def _paths() -> dict[str, str]:
    """Paths by the names that mean them: full ones, and short ones that are the name of no argument."""
    paths = public_names().values()
    short = {path.rpartition(".")[2]: path for path in sorted(paths, key=lambda path: -path.count("."))}
    repeated = {"MlpMixer", "MixerBlock", "MlpBlock"}  # one in each framework
    clear = {name for name in short if (name[0].isupper() or "_" in name) and name not in repeated}
    return {path: path for path in paths} | {name: short[name] for name in clear}
