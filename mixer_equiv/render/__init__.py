"""Reports, tables, HTML and pictures for people."""
