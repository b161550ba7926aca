"""The command line: options, output, and one file for each group of commands."""
