"""Every failure that kdc names, in one tree.

KdcError                     exit 1: a fault of kdc's own
├── UserError                exit 2: something given by the user is wrong; says where, what was found, what to do
│   ├── RecipeError          a recipe's text: syntax, keys, types, values
│   ├── ModelError           a teacher: its code, its weights, what its graph can be turned into
│   ├── DataError            a data set: its code, shapes, labels, splits
│   ├── TargetError          a target or its runtime that is unknown, absent or cannot run the model
│   ├── PlanError            an order of passes that cannot work
│   └── FolderError          an output folder that cannot be used
├── DamagedError             exit 1: a file that kdc wrote is no longer what it wrote; steps catch it and begin anew
├── BudgetError              exit 3: the budget cannot be met; carries the constraint that binds
└── LawError                 exit 1: a pass broke its contract; names the step and the law

A user's Ctrl-C is no error: it is `KeyboardInterrupt`, exit 130.
"""


class KdcError(Exception):
    """A failure whose message is meant for the user as it stands."""

    exit_code = 1

    def __init__(self, message: str, *, do: str | None = None) -> None:
        super().__init__(message if do is None else f"{message}\n  → {do}")


class UserError(KdcError):
    """What the user gave is wrong; `do` is the mend."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe that cannot be read: syntax, an unknown key, a wrong type or value."""


class ModelError(UserError):
    """A teacher that cannot be built, loaded, traced or exported."""


class DataError(UserError):
    """Data that cannot be loaded, or that no result could be trusted with."""


class TargetError(UserError):
    """A target that is unknown, whose runtime is absent, or that lacks what the model needs."""


class PlanError(UserError):
    """An order of passes in which one of them would not find what it needs."""


class FolderError(UserError):
    """An output folder that cannot be used, or is in use."""


class DamagedError(KdcError):
    """A file of kdc's own is not what was written; what it is part of is to be made anew."""


class BudgetError(KdcError):
    """The budget cannot be met; the message names the constraint that binds."""

    exit_code = 3


class LawError(KdcError):
    """A pass did what its contract forbids; the message names the step and the law."""
