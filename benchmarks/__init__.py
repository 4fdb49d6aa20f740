"""Timings. No test: run by hand, quoted as ratios of medians in one run, with the machine and the command."""

# first of all: these settings must stand before torch is imported, as they do on the command line
import clt_lightning.core.environment  # noqa: F401
