"""Budgets of tokens, as requests have them: counts, or fractions of an image's tokens."""

import argparse
from collections.abc import Iterable
from fractions import Fraction

from vllm_litelvlm.options import PruningOptions, ServerOptions

#: A whole number is a count, a float up to 1 a fraction.
Budget = int | float

_BOUNDLESS = ServerOptions()
#: Of a fraction that is written as one, such as 1/9.
_LARGEST_DENOMINATOR = 99


def budget(text: str) -> Budget:
    """As a command line has it: 64, 0.25 or 1/9. Raises ArgumentTypeError for anything else."""
    allowed = PruningOptions.model_fields["budget"].description
    try:
        number = int(text) if text.isdecimal() else float(Fraction(text))
        return PruningOptions(budget=number).budget
    except (ValueError, ArithmeticError):
        raise argparse.ArgumentTypeError(f"{text}; allowed: {allowed}") from None


def named(budgets: Iterable[Budget]) -> dict[str, Budget]:
    """Different budgets by their names, rising, fractions first."""
    ordered = sorted(budgets, key=lambda one: (isinstance(one, int), one))
    return {_name(one): one for one in ordered}


def _name(budget: Budget) -> str:
    """64, 0.25 or 1/9: no two budgets share a name."""
    short = Fraction(budget).limit_denominator(_LARGEST_DENOMINATOR)
    return str(short) if len(str(budget)) > 6 and float(short) == budget else str(budget)


def prunes(budget: Budget, patches: int | None) -> bool:
    """Whether it leaves out some of ``patches``; of so many as an image's size makes if None."""
    if patches is None:
        return isinstance(budget, int) or budget < 1
    return tokens_of(budget, patches) < patches


def tokens_of(budget: Budget, patches: int) -> int:
    """A budget in tokens for an image of ``patches``, as the engine has it where sizes differ."""
    return _BOUNDLESS.fitted_budget(PruningOptions(budget=budget), patches)
