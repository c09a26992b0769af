"""One room for each command: plain functions that the command line, tests and notebooks call."""
