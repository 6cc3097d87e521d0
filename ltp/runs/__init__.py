"""Runs on disk: settings, planning, run directories, checkpoints, locks and provenance."""
