"""The commands as plain functions, one package or module each, for the CLI, tests and notebooks."""
