"""Print what makes a shell complete the verbs of d2-contrast and their options.

source <(d2-contrast completion bash)                                          # in ~/.bashrc
source <(d2-contrast completion zsh)                                           # in ~/.zshrc, after compinit
d2-contrast completion fish > ~/.config/fish/completions/d2-contrast.fish
"""

import argparse
import sys
from importlib import import_module

from .cli import PROGRAM, VERBS, verb_parser

BASH = """\
_d2_contrast() {{
  local words="" word="${{COMP_WORDS[COMP_CWORD]}}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{verbs} --help --version"
  elif [ "${{word:0:1}}" = - ]; then
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o bashdefault -o default -F _d2_contrast {program}
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = verb_parser("completion", __doc__)
    parser.add_argument("shell", choices=list(SCRIPTS), help="the shell to print for")
    return parser


def options_of(verb: str) -> dict[str, str]:
    """The long options of a verb, with their help in one line."""
    parser = import_module(f".{verb}", __package__).build_parser()
    return {
        option: " ".join((action.help or "").split())
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    }


def for_bash() -> str:
    """What bash is to source."""
    cases = "\n".join(f'      {verb}) words="{" ".join(options_of(verb))}" ;;' for verb in VERBS)
    return BASH.format(verbs=" ".join(VERBS), cases=cases, program=PROGRAM)


def for_zsh() -> str:
    """What zsh is to source: it can use what bash does."""
    return f"autoload -U +X bashcompinit && bashcompinit\n{for_bash()}"


def for_fish() -> str:
    """What fish is to load."""

    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    lines = [f"complete -c {PROGRAM} -n __fish_use_subcommand -a {v} -d {quoted(what)}" for v, what in VERBS.items()]
    for verb in VERBS:
        for option, help_text in options_of(verb).items():
            seen = f"-n '__fish_seen_subcommand_from {verb}'"
            lines.append(f"complete -c {PROGRAM} {seen} -l {option[2:]} -d {quoted(help_text)}")
    return "\n".join(lines) + "\n"


SCRIPTS = {"bash": for_bash, "zsh": for_zsh, "fish": for_fish}


def main(argv: list[str] | None = None) -> int:
    """Print the script of a shell; returns the exit code."""
    print(SCRIPTS[build_parser().parse_args(argv).shell](), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
