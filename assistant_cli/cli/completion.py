"""Completion in the shell: what Typer cannot do in bash, and shells that it does not know."""

from __future__ import annotations

from ..errors import UsageError

# Bash replaces only what follows the last `:`, `@` or `=` of a word, which is $2, and splits
# COMP_WORDS there as well; so the line itself is sent. Where it ends with a space, '' is its last
# word.
_BASH = r"""
%(complete_func)s() {
    local IFS=$'\n' line=${COMP_LINE:0:COMP_POINT}
    local word=${line##*[[:space:]]}
    [[ $word ]] || line+="''"
    COMPREPLY=( $( env COMP_WORDS="$line" COMP_CWORD=-1 \
                   %(autocomplete_var)s=complete_bash $1 ) )
    COMPREPLY=( "${COMPREPLY[@]#"${word%%"$2"}"}" )
}

complete -o default -F %(complete_func)s %(prog_name)s
"""


def prepare() -> None:
    """Have Typer give our script to bash.

    Raises:
        UsageError: the shell is none of Typer's, which it would tell on stdout, and exit 1.
    """
    from typer._completion_shared import Shells, _completion_scripts, _get_shell_name

    known = [shell.value for shell in Shells]
    if _get_shell_name() not in known:
        raise UsageError(f"this is no shell that completion is there for: {', '.join(known)}")
    _completion_scripts["bash"] = _BASH
