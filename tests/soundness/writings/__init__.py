"""The official Mixer written in ways that nobody expects, one kind to a module.

`official.py` has the weights of which all are made, so that a test can hold each to the official function;
`torch_plain.py` and `linen_plain.py` have the plain model, whose parts most tables replace one at a time.
Must not know how a verdict is reached.
"""
