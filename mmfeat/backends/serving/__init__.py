"""What runs in a backend's own environment.

The scripts here are started by that environment's Python, which has neither mmfeat nor its dependencies: they import
the standard library, numpy, each other by bare name, and the one backend they serve.
"""
