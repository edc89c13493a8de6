"""The commands for a terminal of one's own: completion, man."""

from __future__ import annotations

import click

from surgeon.cli.group import command, commands, print_text


@command("completion", "surgeon completion bash >> ~/.bash_completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def _completion(shell: str) -> None:
    """Print what makes SHELL complete commands, options, recipes, ops and tensor names.

    \b
    bash  in ~/.bashrc:   eval "$(surgeon completion bash)"
    zsh   in ~/.zshrc:    eval "$(surgeon completion zsh)", after compinit
    fish  once:           surgeon completion fish > ~/.config/fish/completions/surgeon.fish
    """
    from surgeon.cli import shells

    print_text(shells.script(shell, commands).rstrip("\n"))


@command("man", "surgeon man > surgeon.1 && man ./surgeon.1")
def _man() -> None:
    """Print the manual page, made of what --help says of each command."""
    from surgeon.cli import manual

    print_text(manual.page(commands).rstrip("\n"))
