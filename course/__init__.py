"""Experiments with the toys: `python -m course.gaussian`, `.trackability`, `.pairing`."""
