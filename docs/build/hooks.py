"""Hooks of MkDocs: add the pages that are written from the program, links between names, and the version.

`python -m mkdocs build` must run in the root of the repository, so that this folder can be imported.
"""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.build import api, command_line, faults, layouts
from docs.build.line_breaks import allow_breaks
from docs.build.mentions import link_mentions
from mixer_equiv import __version__


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Say in the footer of each page which version it describes."""
    config.copyright = f"These pages describe mixer_equiv {__version__}."
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that exist only while the site is built."""
    for path, text in generated_pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link the public names in the text of a page, and let long names in tables break."""
    return allow_breaks(link_mentions(html))


def generated_pages() -> dict[str, str]:
    """Every page that is written from the program, by its path."""
    return {
        "reference/command-line.md": command_line.write(),
        "reference/layouts.md": layouts.write(),
        "reference/faults.md": faults.write(),
        **api.pages(),
    }
