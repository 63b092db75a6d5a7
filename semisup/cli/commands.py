"""What the parser of the command line complains about, in the words of every other message."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from semisup.errors import SemisupError

__all__ = ["Commands"]


class Commands(TyperGroup):
    """The commands, whose options' values are refused as a recipe's are: the option, the rule, the value."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command.

        Raises:
            SemisupError: an option has a value that it cannot have.
        """
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            from pydantic import ValidationError

            wrong, param = error.__cause__, error.param
            if not isinstance(wrong, ValidationError) or param is None:
                raise
            from semisup.options import sentences

            raise SemisupError(f"{max(param.opts, key=len)}: {sentences(wrong)[0]}") from error
