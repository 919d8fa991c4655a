"""What numbers may be, and what form plain values must have: a command line's, a checkpoint's."""

import argparse
import json
import math
from dataclasses import fields

from screens.command_line import UNSEEN, InputError


def flag(name):
    """The option of a setting."""
    return "--" + name.replace("_", "-")


def whole(least, most):
    """A type for argparse: a whole number from `least` to `most`."""

    def number(text):
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be from {least:,} to {most:,}, not {text}")
        return value

    number.__name__ = "int"  # argparse calls it so, where a text is no number
    return number


SEED = whole(0, 2**31 - 1)


def check_limits(settings):
    """Raise InputError for a setting outside its limits or choices (see departures.setting)."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        choices = field.metadata.get("choices", (value,))
        if value not in choices:
            raise InputError(
                f"{flag(field.name)} must be one of {', '.join(choices)}; it is {value}"
            )
        check_number(field, value)


def check_number(field, value):
    """Refuse a number outside its limits."""
    least = field.metadata.get("least")
    most = field.metadata.get("most")
    finite = field.type is not float or math.isfinite(value)
    if finite and (least is None or value >= least) and (most is None or value <= most):
        return
    limits = ""
    if least is not None:
        limits += f", at least {least}"
    if most is not None:
        limits += f", at most {most}"
    raise InputError(f"{flag(field.name)} must be a finite number{limits}; it is {value}")


def from_json(text, **options):
    """What a JSON text holds. ValueError for what is none, or is nested too deeply to be read."""
    try:
        return json.loads(text, **options)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def has_form(value, form):
    """Whether a plain value has a form.

    A form is a type (or several, A | B); [form], a list of any length; (form, form), a list of just
    these; {name: form}, a dictionary with no other names; {str: form}, one with any names. A text
    has no UNSEEN characters.
    """
    if isinstance(form, list):
        return isinstance(value, list) and all(has_form(item, form[0]) for item in value)
    if isinstance(form, tuple):
        fits = isinstance(value, list) and len(value) == len(form)
        return fits and all(map(has_form, value, form))
    if isinstance(form, dict):
        if not isinstance(value, dict) or not all(has_form(name, str) for name in value):
            return False
        forms = {name: form.get(name, form.get(str)) for name in value}
        return all(forms[name] and has_form(value[name], forms[name]) for name in value)
    unseen = isinstance(value, str) and UNSEEN.search(value)
    return isinstance(value, form) and not unseen
