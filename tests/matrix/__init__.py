"""The wheel on every supported Python, and on the oldest supported dependencies: `make matrix`."""
