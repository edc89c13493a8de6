"""The command line: commands, options, and how results are shown.

Errors become exit codes here, and only here is click imported.
"""
