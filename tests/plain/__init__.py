"""The tests of what is taken from a processor or a system, where both have less: `python -m tests.plain`."""
