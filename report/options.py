"""The command lines of train.py and sample.py, apart from them: neither loads torch.

A script reads its own twice. The first time is before it loads what takes seconds, so that --help
and mistakes are answered at once.
"""

import argparse
import ast
import os
from dataclasses import fields
from functools import cache

import screens
from screens import InputError, flag

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@cache
def settings_class():
    """The class ImprovedSettings of departures.py.

    That file loads torch, so of its statements only those that make the class are run.
    """
    path = f"{ROOT}/departures.py"
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read(), path)
    needed = {"dataclass", "setting", "PLANS", "COSTS", "Settings", "ImprovedSettings"}
    tree.body = [statement for statement in tree.body if names_made(statement) & needed]
    made = {"__name__": "departures"}
    exec(compile(tree, path, "exec"), made)
    return made["ImprovedSettings"]


def names_made(statement):
    """The names that a statement imports, assigns or defines."""
    if isinstance(statement, ast.ImportFrom):
        return {alias.name for alias in statement.names}
    if isinstance(statement, ast.Assign):
        return {target.id for target in statement.targets if isinstance(target, ast.Name)}
    return {getattr(statement, "name", None)}


# ---- train.py ------------------------------------------------------------------------------------

GROUPS = {  # of --help; all other settings are additions
    "screen": ["genes", "test_fraction"],
    "method": [
        "sigma", "steps", "pairing", "cost", "epsilon", "plan_cells", "grn", "drug_embedding",
        "gene_embedding", "embedding", "width",
    ],
    "training": ["epochs", "batch", "learning_rate", "seed"],
}  # fmt: skip


PAPER_SAYS = {"genes": "5000 and 2000", "batch": "64 and 256", "epochs": "5 and 40"}
PAPER_IS_SILENT = ("drug_embedding", "gene_embedding", "embedding", "width", "seed")
METAVARS = {int: "N", float: "X", str: "TEXT"}


def parser_of_settings(about=None):
    """The command line: a group of options for each kind of setting, and the run's own."""
    parser = argparse.ArgumentParser(description=about, **screens.ONE_LINE)
    run = parser.add_argument_group("run")
    run.add_argument(
        "--data", metavar="H5AD",
        help="h5ad of the screen, or the name of a public one (python -m screens --list), kept in "
        "the user's cache or in DEPARTURES_DATA; without it one is simulated",
    )  # fmt: skip
    run.add_argument("--out", metavar="FOLDER", help="folder of the run (runs/NAME)")
    run.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 … (cpu)")
    run.add_argument("--resume", metavar="RUN", help="continue an interrupted run")
    run.add_argument("--verbose", action="store_true", help="print the tables of scores, too")
    run.add_argument("--paper", action="store_true", help="the paper's method, without additions")
    run.add_argument(
        "--ablate", nargs="?", type=screens.whole(1, 100), const=3, metavar="SEEDS",
        help="train and score variants of the method, over so many seeds (3)",
    )  # fmt: skip
    screen = parser.add_argument_group("screen")
    screen.add_argument(
        "--test", action="append", default=[], metavar="CONDITION",
        help="hold out A, A+B or drug:dose, with @celltype for one type; may be repeated",
    )  # fmt: skip
    screen.add_argument(
        "--also", action="append", default=[], metavar="GENE",
        help="a gene nobody perturbed, to be predicted later; may be repeated",
    )  # fmt: skip
    for name, text in screens.COLUMNS.items():
        screen.add_argument(flag(name), metavar="NAME", help=text)
    groups = {"screen": screen}
    paper = settings_class()().paper()
    for field in fields(paper):
        kinds = [kind for kind, names in GROUPS.items() if field.name in names]
        kind = kinds[0] if kinds else "additions"
        if kind not in groups:
            groups[kind] = parser.add_argument_group(kind)
        add_setting(groups[kind], field, getattr(paper, field.name))
    return parser


def add_setting(group, field, paper):
    """Add the option of one setting, with its default and the paper's value."""
    values = said(field.default)
    if field.name in PAPER_SAYS:
        values += f"; paper {PAPER_SAYS[field.name]}"
    elif field.name not in PAPER_IS_SILENT:
        same = paper == field.default
        values += ", as the paper" if same else f"; paper {said(paper)}"
    more = {"help": f"{field.metadata['help']} ({values})", "default": argparse.SUPPRESS}
    if field.type is bool:
        more["action"] = argparse.BooleanOptionalAction
    else:
        more["type"] = field.type
        more["choices"] = field.metadata.get("choices")
        more["metavar"] = METAVARS[field.type] if not more["choices"] else None
    group.add_argument(flag(field.name), **more)


def said(value):
    """A setting's value, for a person."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value) if value != "" else "none"


def train_options(about=None):
    """The command line's arguments, checked. Settings that were not given are not among them."""
    args = parser_of_settings(about).parse_args()
    drawn = hasattr(args, "test_fraction")
    screens.check_effects(
        ("--split-column", args.split_column and args.test, "beside --test"),
        ("--test-fraction", drawn and args.test, "beside --test"),
        ("--test-fraction", drawn and args.split_column, "beside --split-column"),
        ("--verbose", args.verbose and args.ablate is not None, "beside --ablate"),
    )
    if not args.resume:
        check_settings(settings_of(args, settings_class()()))
    return args


def settings_of(args, settings):
    """The settings that the command line asks for: the default, changed in place."""
    if args.paper:
        settings.paper()
    for field in fields(settings):
        if hasattr(args, field.name):
            setattr(settings, field.name, getattr(args, field.name))
    return settings


def note_effects(settings, args):
    """Say which settings that were given change nothing beside the others.

    They are not refused, for the variants of --ablate share options.
    """
    for name, idle, why in (
        ("embedding", settings.shifts, "with --shifts"),
        ("epsilon", settings.pairing != "entropic", f"with --pairing {settings.pairing}"),
        ("cost", settings.pairing == "random", "with --pairing random"),
    ):
        if idle and hasattr(args, name):
            print(f"note: {flag(name)} has no effect {why}")


def check_settings(settings):
    """Refuse settings that cannot work, in one line."""
    screens.check_limits(settings)
    if not is_epsilon(settings.epsilon):
        raise InputError(
            "--epsilon must be a positive number, at most 1000, or 'bridge', not "
            f"{settings.epsilon!r}"
        )
    if settings.epsilon == "bridge" and settings.cost != "sqeuclidean":
        raise InputError("--epsilon bridge is defined for --cost sqeuclidean only")
    if not settings.discrete and settings.if_expressed:
        raise InputError(
            "--no-discrete needs --no-if-expressed: one bridge alone has to carry the zeros"
        )
    if settings.grn == "structural" and not settings.shifts:
        raise InputError("--grn structural needs --shifts; use --grn coexpression")
    need = ("skip_gate", "if_expressed", "anchor", "gene_embedding")
    for name in need if not settings.shifts else ():
        if getattr(settings, name):
            raise InputError(f"{flag(name)} needs --shifts")


def is_epsilon(text):
    """Whether a text is a value of --epsilon."""
    if text == "bridge":
        return True
    try:
        return 0 < float(text.removesuffix("max")) <= 1000
    except ValueError:
        return False


# ---- sample.py -----------------------------------------------------------------------------------


def cell_columns():
    """The options that say which column of a file means what, for a file of cells."""
    return [name for name in screens.COLUMNS if name != "split_column"]


def sample_options(about=None):
    """The command line's arguments, checked."""
    parser = argparse.ArgumentParser(description=about, **screens.ONE_LINE)
    parser.add_argument("run", help="folder of a run of train.py")
    what = parser.add_argument_group("what is predicted")
    what.add_argument(
        "--condition", action="append", default=[],
        help="A, A+B or drug:dose, with @celltype for one type only; may be repeated",
    )  # fmt: skip
    what.add_argument("--training", action="store_true", help="every training condition instead")
    what.add_argument(
        "--cells", type=screens.whole(1, 1_000_000),
        help="cells per condition (as many as measured, or 200)",
    )  # fmt: skip
    what.add_argument("--seed", type=screens.SEED, help="of the samples (the run's)")
    start = parser.add_argument_group("where it starts")
    start.add_argument("--data", help="an h5ad of other control cells, or a public screen's name")
    for name in cell_columns():
        start.add_argument(
            "--" + name.replace("_", "-"), help=f"of --data: {screens.COLUMNS[name]}"
        )
    where = parser.add_argument_group("where it goes")
    where.add_argument(
        "--out",
        help="h5ad to write (RUN/predicted.h5ad; training.h5ad with --training; asked.h5ad with "
        "--condition, which is replaced without --out only if no other condition is in it). "
        "Beside it NAME_genes.csv says which genes change",
    )  # fmt: skip
    where.add_argument("--with-controls", action="store_true", help="copy the real controls in")
    where.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 … (cpu)")
    args = parser.parse_args()
    screens.check_effects(
        *(
            (flag(name), getattr(args, name) and not args.data, "without --data")
            for name in cell_columns()
        ),
        ("--training", args.training and args.condition, "beside --condition"),
    )
    if args.data and not args.condition:
        raise InputError("--data needs --condition: name what to predict for those control cells")
    return args
