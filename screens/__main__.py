"""Say what is understood of a file: what training would see.

    python -m screens screen.h5ad
    python -m screens screen.h5ad --test 'KLF1+TGFBR2@k562'

Cells and genes, counts or log1p, the perturbations and their doses, the controls of every cell
type, the conditions and which of them are held out; warnings last.
"""

import argparse

from screens import COLUMNS, ONE_LINE, describe, prepare, run_script


def main():
    parser = argparse.ArgumentParser(prog="python -m screens", description=__doc__, **ONE_LINE)
    parser.add_argument("file", help="an h5ad")
    parser.add_argument(
        "--test", action="append", default=[], help="condition to hold out, as for train.py"
    )
    for name, text in COLUMNS.items():
        parser.add_argument("--" + name.replace("_", "-"), help=text)
    args = vars(parser.parse_args())
    path = args.pop("file")
    print(*describe(prepare(path, **args)), sep="\n")


if __name__ == "__main__":
    run_script(main)
