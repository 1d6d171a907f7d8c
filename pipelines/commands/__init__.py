"""One module per command of `mmfeat`: SUMMARY, EXAMPLES, configure(parser), run(args) -> exit status.

Only the standard library is imported at the top of these modules: every command's `--help` loads them all.
"""
