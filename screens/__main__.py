"""Say what is understood of a file: what training would see.

    python -m screens screen.h5ad
    python -m screens screen.h5ad --test 'KLF1+TGFBR2@k562'
    python -m screens screen.h5ad --genes STAT1        whether it is perturbed, measured, kept
    python -m screens --list                           public screens, named in place of a file

Cells and genes, counts or log1p, the perturbations and their doses, the controls of every cell
type, the conditions and which of them are held out; warnings last.
"""

import argparse

from screens import (
    COLUMNS,
    ONE_LINE,
    InputError,
    check_effects,
    data_path,
    describe,
    describe_genes,
    flag,
    list_public,
    prepare,
    run_script,
)

ALL = 2**63  # more genes than any file has


def parser_of_file():
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m screens", description=__doc__, **ONE_LINE)
    parser.add_argument(
        "file",
        nargs="?",
        help="an h5ad, or the name of a public screen, which is downloaded (into the user's cache, "
        "or DEPARTURES_DATA)",
    )
    parser.add_argument("--list", action="store_true", help="name the public screens")
    parser.add_argument(
        "--genes",
        nargs="*",
        metavar="GENE",
        help="say which genes are perturbed, measured and kept, or what is known of some",
    )
    parser.add_argument(
        "--test", action="append", default=[], help="condition to hold out, as for train.py"
    )
    for name, text in COLUMNS.items():
        parser.add_argument("--" + name.replace("_", "-"), help=text)
    return parser


def main():
    """Say what is understood of the file that the command line names, or list public screens."""
    parser = parser_of_file()
    args = vars(parser.parse_args())
    if args.pop("list"):
        given = [name for name in args if args[name] != parser.get_default(name)]
        names = [args["file"] if name == "file" else flag(name) for name in given]
        check_effects(*((name, True, "beside --list") for name in names))
        print(*list_public(), sep="\n")
        return
    data = args.pop("file")
    if data is None:
        raise InputError("give an h5ad first, or --list alone to see the public screens")
    asked = args.pop("genes")
    path = data_path(data)
    if asked is None:
        print(*describe(prepare(path, **args)), sep="\n")
    else:
        print(*describe_genes(prepare(path, genes=ALL, **args), asked), sep="\n")


if __name__ == "__main__":
    run_script(main)
