"""oasst: `prompt` is an object, the first message of a tree."""

from __future__ import annotations

from mona.formats._turns import role_of
from mona.formats.base import Format, FormatError, Row, items, text
from mona.sample import Message


def _convert(row: Row) -> list[Message]:
    """The path of best-ranked replies (rank 0 is best, none is last), deleted ones skipped."""
    node = row.get("prompt")
    if not isinstance(node, dict):
        raise FormatError("field 'prompt' is not a message tree")
    if node.get("deleted"):
        raise FormatError("the prompt is deleted")
    path = [_tree_turn(node)]
    while replies := [reply for reply in items(node, "replies") if _is_kept(reply)]:
        node = min(replies, key=_rank)
        path.append(_tree_turn(node))
    while path and path[-1].role != "assistant":
        path.pop()
    if not path:
        raise FormatError("the tree has no answer")
    return path


def _is_kept(reply: object) -> bool:
    if not isinstance(reply, dict):
        raise FormatError(f"a reply is a {type(reply).__name__}, not an object")
    return not reply.get("deleted")


def _rank(reply: Row) -> float:
    rank = reply.get("rank")
    return rank if isinstance(rank, int | float) else float("inf")


def _tree_turn(node: Row) -> Message:
    return Message(role_of(node.get("role")), text(node, "text"))


KIND = Format(
    fits=lambda row: isinstance(dict.get(row, "prompt"), dict), precedence=20, convert=_convert
)
