"""Sweeps: a process for each job, GPUs shared between jobs, and the record of what is done."""
