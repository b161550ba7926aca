"""The command line `bench`: shared options, output, and one module for each group of commands."""
