"""The command line: Hydra's entry point, overrides, error messages, progress bars and checks of output files."""
