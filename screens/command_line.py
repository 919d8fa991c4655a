"""What all scripts share: errors in one line, signals, the look of --help."""

import argparse
import itertools
import os
import re
import signal
import sys
import warnings

STOPPED = []  # signals that asked to stop, for loops and `save` to look at
UNSEEN = re.compile(  # control characters, ends of lines, marks that turn the direction of text
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)
ONE_LINE = {  # of argparse's own errors
    "usage": argparse.SUPPRESS,
    "formatter_class": lambda prog: argparse.RawDescriptionHelpFormatter(
        prog, max_help_position=30, width=100
    ),
}


class InputError(Exception):
    """Something in the user's file or command: one line that names it and says what to do.

    Scripts print it to stderr and exit with 2.
    """


def some(names, n=8):
    """The first n of some names, as text, and how many more there are."""
    names = list(map(str, names))
    text = ", ".join(names[:n])
    if len(names) > n:
        text += f" and {len(names) - n:,} more"
    return text


def stop(number, frame):
    """Handle a signal: raise KeyboardInterrupt, and keep the signal in STOPPED.

    Python drops an exception that is raised while a library's callback or destructor runs.
    """
    STOPPED.append(number)
    raise KeyboardInterrupt


def drop(lost):
    """Say nothing of a KeyboardInterrupt that Python drops: `check_stopped` raises it again."""
    if lost.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(lost)


def check_stopped():
    """Raise KeyboardInterrupt if a signal asked to stop, for Python may have dropped the first."""
    if STOPPED:
        raise KeyboardInterrupt


def run_script(main):
    """Run a script's main().

    Wrong input is one line on stderr and exit code 2; Ctrl-C and SIGTERM are one line and 130.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell ignores Ctrl-C for what runs in its background, and so do we.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
    sys.unraisablehook = drop
    # In order with stderr, also in a file; what a terminal cannot show as Python writes it.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    warnings.simplefilter("ignore")  # libraries' asides to programmers; our own are printed
    in_one_line(main)


def in_one_line(work):
    """Call work(); what is wrong with the input is one line on stderr."""
    try:
        check_text(sys.argv, "the command line")
        check_text([os.getcwd()], "the current folder")
        work()
        check_stopped()
    except (InputError, OSError, MemoryError) as error:
        print("error: " + one_line(error), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; start again", file=sys.stderr)
        sys.exit(130)


def check_plain(texts, where):
    """Raise InputError for a text with UNSEEN characters, which would rewrite a terminal or a page.

    where: it comes from.
    """
    for text in map(str, texts):
        if UNSEEN.search(text):
            raise InputError(
                f"{where}: {ascii(text)} holds a control character, or one that turns the "
                "direction of text; give it another name"
            )


def check_text(arguments, where):
    """Raise InputError for an argument that is empty, not plain, or not UTF-8: no file keeps it."""
    check_plain(arguments, where)
    for before, argument in itertools.pairwise(arguments):
        option = before if argument == "" else argument.removesuffix("=")
        if option != argument and option.startswith("--"):
            raise InputError(f"{option} is empty; give a value or leave it out")
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{ascii(argument)}: not UTF-8; give another name") from error


def check_effects(*options):
    """Raise InputError for the first of some (option, given where it changes nothing, why)."""
    for option, idle, why in options:
        if idle:
            raise InputError(f"{option} has no effect {why}; leave it out")


def one_line(error):
    """What an error says, on one line, with UNSEEN characters as Python writes them."""
    said = " ".join(str(error).split()) or "out of memory; try fewer --genes"
    reason = getattr(error, "strerror", "")
    if reason:
        place = error.filename or "output"
        said = f"{place}: {reason}; check the path, its rights and the space"
    return UNSEEN.sub(lambda found: ascii(found[0])[1:-1], said)
