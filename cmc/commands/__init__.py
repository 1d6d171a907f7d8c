"""What the `cmc` command can do, one module each.

A module has `SUMMARY`, `DESCRIPTION`, `EXAMPLES`, `configure(parser)` and `run(args)`, which returns the exit status
and imports what is heavy only then. `CONFIG = True` gives it one flag per field of the config.
"""
