"""The command line: Hydra's entry point, and how settings, errors and progress are shown."""
