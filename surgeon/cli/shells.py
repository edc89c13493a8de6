"""Completion in bash, zsh and fish: the scripts, and how they are answered.

A shell hands over its line up to the cursor. click finds which command, option or argument the
cursor is at; `completion` says what may stand there.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

import click
from click.shell_completion import CompletionItem, ShellComplete, split_arg_string

# `word` gets a space behind it, `part` goes on (`body.`, `layer=`), `file` the shell has to find.
_WORD, _PART, _FILE = "word", "part", "file"

# compgen and printf -v, but no associative array: also for the bash 3.2 of macOS, whose compopt is
# missing, so that a space follows every word there.
_BASH = r"""
%(complete_func)s() {
    local kind value help cut="" current line="${COMP_LINE:0:COMP_POINT}" mark
    COMPREPLY=()
    while IFS=$'\t' read -r kind value help; do
        current="$value"
        for mark in = :; do
            # readline completes what follows the last of these in a word.
            if [[ "$COMP_WORDBREAKS" == *"$mark"* && "$current" == *"$mark"* ]]; then
                [[ "$kind" == part && "$mark" == = && "$current" == *= ]] && continue
                current="${current##*"$mark"}"
            fi
        done
        case "$kind" in
            file)
                compopt -o filenames 2>/dev/null
                while IFS= read -r value; do
                    COMPREPLY+=("$value")
                done < <(compgen -f -- "$current")
                ;;
            part)
                compopt -o nospace 2>/dev/null
                COMPREPLY+=("$current")
                ;;
            word)
                printf -v current '%%q' "$current"
                COMPREPLY+=("$current")
                ;;
        esac
    done < <(env COMP_LINE="$line" %(complete_var)s=bash_complete "$1" 2>/dev/null)
}
complete -F %(complete_func)s %(prog_name)s
"""

_ZSH = r"""#compdef %(prog_name)s
%(complete_func)s() {
    local kind value help
    local -a words_only parts described lines
    lines=("${(@f)$(env COMP_LINE="${(j: :)words[1,CURRENT]}" \
        %(complete_var)s=zsh_complete "${(Q)words[1]}" 2>/dev/null)}")
    local line
    for line in $lines; do
        kind="${line%%%%$'\t'*}"; value="${${line#*$'\t'}%%%%$'\t'*}"; help="${line##*$'\t'}"
        case "$kind" in
            file) [[ "$value" == *=* ]] && compset -P '*='; _files ;;
            part) parts+=("$value") ;;
            word)
                if [[ -n "$help" ]]; then
                    described+=("${value//:/\\:}:$help")
                else
                    words_only+=("$value")
                fi ;;
        esac
    done
    (( $#described )) && _describe -V '%(prog_name)s' described
    (( $#words_only )) && compadd -V words -a words_only
    (( $#parts )) && compadd -V parts -S '' -a parts
    return 0
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""

# fish puts no space behind what ends with '.' or '='.
_FISH = r"""function %(complete_func)s
    for line in (env COMP_LINE=(commandline -cp | string collect) %(complete_var)s=fish_complete \
            %(prog_name)s 2>/dev/null)
        set -l found (string split \t -- $line)
        if test $found[1] = file
            set -l before (string match -r '^.*=' -- $found[2])
            for path in (__fish_complete_path (string replace -r '^.*=' '' -- $found[2]))
                echo "$before"$path
            end
        else if test -n "$found[3]"
            echo $found[2]\t$found[3]
        else
            echo $found[2]
        end
    end
end
complete --no-files --command %(prog_name)s --arguments '(%(complete_func)s)'
"""


class _Completion(ShellComplete):
    """What is the same for all shells; a line of the answer is kind, value and help, with tabs."""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)[1:]
        incomplete = words.pop() if words and not line[-1:].isspace() else ""
        return words, incomplete

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[Any]]:
        self.ctx_args["obj"] = args
        return super().get_completions(args, incomplete)

    def format_completion(self, item: CompletionItem[Any]) -> str:
        value = str(item.value)
        if item.type in ("file", "dir"):
            kind = _FILE
        else:
            kind = _PART if value.endswith((".", "=")) else _WORD
        about = " ".join((item.help or "").split())
        # What would end a line of the answer, or a field of it, cannot be completed.
        return f"{kind}\t{value}\t{about}" if value.isprintable() or not value else ""


class _Bash(_Completion):
    name: ClassVar[str] = "bash"
    source_template: ClassVar[str] = _BASH


class _Zsh(_Completion):
    name: ClassVar[str] = "zsh"
    source_template: ClassVar[str] = _ZSH


class _Fish(_Completion):
    name: ClassVar[str] = "fish"
    source_template: ClassVar[str] = _FISH


SHELLS: dict[str, type[_Completion]] = {kind.name: kind for kind in (_Bash, _Zsh, _Fish)}
_VARIABLE = "_SURGEON_COMPLETE"


def script(shell: str, group: click.Command) -> str:
    """Return what a shell reads so that it completes."""
    return SHELLS[shell](group, {}, "surgeon", _VARIABLE).source().lstrip("\n")


def answer(shell: str, group: click.Command) -> str:
    """Return a line for each word that may stand at the cursor of COMP_LINE."""
    return SHELLS[shell](group, {}, "surgeon", _VARIABLE).complete() + "\n"
