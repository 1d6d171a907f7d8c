"""The demo corpus: drawn faces that speak, with planted labels. See `make_demo`."""

from mmfeat.demo.corpus import Demo, DemoError, make_demo

__all__ = ["Demo", "DemoError", "make_demo"]
