"""Hooks of MkDocs: add the pages that are written from the program, links between names, and the version.

`python -m mkdocs build` must run in the root of the repository, so that this folder can be imported.
"""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.build import api, command_line, execution, faults, layouts, results
from docs.build.line_breaks import allow_breaks
from docs.build.mentions import link_mentions
from mixer_equiv import __version__

# The pages of this build that were run.
PAGES = execution.Pages()


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Begin a build, and say in the footer of each page which version it describes."""
    PAGES.names.clear()
    config.copyright = f"These pages describe mixer_equiv {__version__}."
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that exist only while the site is built."""
    for path, text in generated_pages().items():
        files.append(File.generated(config, path, content=text))
    for path, picture in results.pictures().items():
        files.append(File.generated(config, path, content=picture))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Run the code of a page, and show what it prints."""
    path = page.file.src_uri
    if path.partition("/")[0] not in execution.SECTIONS or not config.extra["run_pages"]:
        return markdown
    source = page.file.content_string
    return PAGES.run(path, markdown, page.meta, source.count("\n") - markdown.count("\n") + 1)


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
        **results.pages(),
    }
