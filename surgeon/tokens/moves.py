"""Which number a token has in another tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

from surgeon.tokens.tokenizer import TEMPLATE, Tokenizer


@dataclass(frozen=True)
class TokenMoves:
    """Numbers of tokens before, as they are in the tokenizer after."""

    before: Tokenizer
    after: Tokenizer

    @property
    def left_out(self) -> tuple[str, ...]:
        """The files beside the tokenizer before that say nothing of the one after."""
        template = () if self.before.template is None else (TEMPLATE,)
        there = (*self.before.other_forms, *self.before.beside, *template)
        after = (*self.after.beside, *(() if self.after.template is None else (TEMPLATE,)))
        return tuple(name for name in there if name not in after)

    def knows(self, number: int) -> bool:
        """Say whether there was a token of this number."""
        return number in self.before.tokens

    def number_of(self, number: int, key: str) -> int | None:
        """Return the number that a config's `key` says from now on; None where its token is gone.

        A token that has a role gives it to the one that has it after: another tokenizer's end of
        text is what ends a text.
        """
        token = self.before.tokens[number]
        own = key.removesuffix("_id")
        roles = [own] if self.before.roles.get(own) == token else []
        if token not in self.after.ids:
            roles += [role for role, other in self.before.roles.items() if other == token]
        for role in roles:
            if (found := self.after.ids.get(self.after.roles.get(role, ""))) is not None:
                return found
        return self.after.ids.get(token)
