"""Compiling a run's own train step for devices that are not there: does it fit, and where would the time go."""
