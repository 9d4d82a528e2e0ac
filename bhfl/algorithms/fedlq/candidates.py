"""The widths that layers may choose from."""

from collections.abc import Sequence

from bhfl.checks import are_all, is_integer


def candidates_problem(candidates: Sequence[int]) -> str:
    """What is wrong with the widths that layers may choose from."""
    known = are_all(candidates, lambda bits: is_integer(bits) and (bits == 32 or 0 <= bits <= 16))
    if not known or len(set(candidates)) < len(candidates):
        return f"must be distinct widths of 0..16 or 32, got {candidates!r}"
    if any(candidates):
        return ""
    if not candidates:
        return "must name at least one bit-width, got none"
    return f"must hold a width besides 0, with which nothing is ever sent, got {candidates!r}"


def is_served(candidates: Sequence[int], most: int) -> bool:
    """Whether anything can be sent where a layer has at most so many bits: 0 sends nothing."""
    return any(0 < bits <= most for bits in candidates)


def check_carried(infeasible: str, error_feedback: bool, rule: str) -> None:
    """ValueError where clients would carry what they came to, and cannot."""
    if infeasible == "carry" and not (error_feedback and rule != "average"):
        raise ValueError(
            "FedLQ.infeasible: carry needs FedLQ.error_feedback: true and FedLQ.budget.rule: "
            f"deadline or quantile, got {error_feedback} and {rule}"
        )


def check_left_out(candidates: Sequence[int], error_feedback: bool, plan: str) -> None:
    """ValueError where what is left out of layers would be lost, or where a plan could not say
    that all of one is.
    """
    if 1 in candidates and not error_feedback:
        raise ValueError(
            "FedLQ.candidates with 1, which sends signs of differences, needs "
            "FedLQ.error_feedback: true and FedLQ.payload: delta, got error_feedback: false"
        )
    if 0 in candidates and not (error_feedback and plan == "client"):
        raise ValueError(
            "FedLQ.candidates with 0, which leaves a layer for a later round, needs "
            f"FedLQ.error_feedback: true and FedLQ.plan: client, got {error_feedback} and {plan}"
        )
