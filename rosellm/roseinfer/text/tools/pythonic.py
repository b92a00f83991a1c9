"""Llama 4 and others: an answer that is a list of Python calls, ``[f(a=1), g()]``.

The list is parsed as Python and never run: only literals are taken for arguments.
"""

from __future__ import annotations

import ast
import json
import warnings

from rosellm.roseinfer.text.parts import Call
from rosellm.roseinfer.text.tools.format import ToolFormat

_START, _END = "<|python_start|>", "<|python_end|>"


def read(text: str) -> list[Call] | None:
    """The calls of a list."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is odd in the model's strings
            tree = ast.parse(text.strip().removesuffix(_END).strip(), mode="eval").body
        if not isinstance(tree, ast.List) or not tree.elts:
            return None
        return [_call(each) for each in tree.elts]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call with named arguments")
    given = {}
    for argument in node.keywords:
        if argument.arg is None or argument.arg in given:
            raise ValueError("unpacked, or there twice")
        given[argument.arg] = ast.literal_eval(argument.value)
    return Call(ast.unparse(node.func), json.dumps(given, ensure_ascii=False, allow_nan=False))


FORMAT = ToolFormat(start=_START, end="", read=read, bare="[", inner=(_END,))
