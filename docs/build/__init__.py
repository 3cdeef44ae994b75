"""Programs that build the documentation. MkDocs calls `hooks`; start reading there.

`readme_table` and `pictures` write what the README shows: the table of layouts, and terminals as SVG. `pictures`
also writes that of `usual_checks`, for a page of the site.
"""
