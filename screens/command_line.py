"""What all scripts share: errors in one line, signals, the look of --help."""

import argparse
import signal
import sys
import warnings

STOPPED = []  # signals that asked to stop, for loops and `save` to look at
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
    sys.stdout.reconfigure(line_buffering=True)  # in order with stderr, also in a file
    warnings.simplefilter("ignore")  # libraries' asides to programmers; our own are printed
    in_one_line(main)


def in_one_line(work):
    """Call work(); what is wrong with the input is one line on stderr."""
    try:
        check_text(sys.argv)
        work()
        check_stopped()
    except (InputError, OSError, MemoryError) as error:
        print("error: " + one_line(error), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; start again", file=sys.stderr)
        sys.exit(130)


def check_text(arguments):
    """Raise InputError for an argument that is not UTF-8, which no file could keep."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{ascii(argument)}: not UTF-8; give another name") from error


def one_line(error):
    """What an error says, on one line."""
    reason = getattr(error, "strerror", "")
    if reason:
        place = error.filename or "output"
        return f"{place}: {reason}; check the path, its rights and the space"
    return " ".join(str(error).split()) or "out of memory; try fewer --genes"
