"""The command and what all its verbs have in common."""

import json
import os
import resource
import subprocess
import sys
from importlib import import_module

import pytest
from detectron2.engine import default_argument_parser

import d2_contrast
from d2_contrast import cli, completion, train

HEAVY = ("torch", "detectron2", "numpy", "matplotlib", "timm", "cv2")
IN_NEW_PROCESS = """
import importlib, json, sys
try:
    code = importlib.import_module(sys.argv[1]).main(sys.argv[2:])
except SystemExit as end:
    code = end.code
print(json.dumps([code, sorted(sys.modules)]))
"""


def in_new_process(module: str, *arguments: str):
    """Text on stdout, exit code, modules that were imported, and seconds of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", IN_NEW_PROCESS, f"d2_contrast.{module}", *arguments]
    *text, last = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, modules = json.loads(last)
    return "\n".join(text), code, modules, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_lists_every_verb():
    text, code, modules, seconds = in_new_process("cli", "--help")
    assert code == 0 and not {*HEAVY} & {*modules} and seconds < 1
    for verb, what in cli.VERBS.items():
        assert f"  {verb} " in text and what in text
        assert f"d2_contrast.{verb}" not in modules


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_a_verb(verb):
    text, code, modules, seconds = in_new_process("cli", verb, "--help")
    assert code == 0 and not {*HEAVY} & {*modules} and seconds < 1
    assert text.startswith(f"usage: {cli.PROGRAM} {verb} ")
    assert f"{cli.PROGRAM} {verb}" in text.split("\n\n", 1)[1]  # an example
    for action in import_module(f"d2_contrast.{verb}").build_parser()._actions:
        assert action.help, action


@pytest.mark.parametrize("verb", cli.VERBS)
def test_a_verb_is_a_module(verb):
    command = [sys.executable, "-m", f"d2_contrast.{verb}", "--no-such-option"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == ""
    assert f"{cli.PROGRAM} {verb}: error: " in result.stderr


def test_without_a_verb(capsys):
    assert cli.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == cli.build_parser().format_help()
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"d2-contrast {d2_contrast.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chek", "--help"], "d2-contrast: error: there is no verb 'chek': do you mean check?\n"),
        (["xyz"], "there is no verb 'xyz': those that there are: "),
        (["--verbose"], "d2-contrast: error: "),
    ],
)
def test_a_verb_that_there_is_not(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("code", [0, 1])
def test_exit_codes_of_verbs_are_handed_on(code, monkeypatch):
    monkeypatch.setattr(completion, "main", lambda arguments: code if arguments == ["bash"] else None)
    assert cli.main(["completion", "bash"]) == code


def test_an_interrupted_verb(monkeypatch):
    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(completion, "main", interrupt)
    with pytest.raises(SystemExit, match="130"):
        cli.main(["completion"])


def test_training_takes_what_detectron2_takes():
    """The parser is one of our own since Detectron2's imports torch, and has one port for all jobs of a user."""
    own, theirs = train.build_parser(), default_argument_parser()
    words = ["--config-file", "a.yaml", "--resume", "--num-gpus", "2", "--machine-rank", "1", "SEED", "1", "--x"]
    for arguments in ([], words, ["--eval-only", "--num-machines", "3", "--dist-url", "tcp://node0:29500"]):
        expected = vars(theirs.parse_args(["--dist-url", "auto", *arguments]))
        assert vars(own.parse_args(arguments)) == {**expected, "overwrite": False, "debug": False}


@pytest.mark.parametrize(("text", "path"), [("~/a", "/home/me/a"), ("~nobody-here/a", "~nobody-here/a"), ("a~", "a~")])
def test_given_paths(monkeypatch, text, path):
    monkeypatch.setenv("HOME", "/home/me")
    assert str(cli.given_path(text)) == path


def complete(*words: str) -> list[str]:
    """What bash proposes for the last of these words."""
    script = f"{completion.for_bash()}\n_d2_contrast\n" + 'printf "%s\\n" "${COMPREPLY[@]}"'
    variables = f"COMP_WORDS=({' '.join(map(repr, words))}); COMP_CWORD={len(words) - 1}\n"
    return subprocess.run(
        ["bash", "-c", variables + script], capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]}
    ).stdout.split()


def test_completion_in_bash():
    assert complete("d2-contrast", "") == [*cli.VERBS, "--help", "--version"]
    assert complete("d2-contrast", "ch") == ["check"]
    assert complete("d2-contrast", "train", "--ev") == ["--eval-only"]
    options = ["--help", "--names", "--dataset", "--output", "--opts"]
    assert complete("d2-contrast", "compare", "output/a", "--") == options
    assert complete("d2-contrast", "check", "") == []  # files, by bash itself


@pytest.mark.parametrize("shell", completion.SCRIPTS)
def test_completion_knows_every_verb_and_option(shell, capsys):
    assert completion.main([shell]) == 0
    text = capsys.readouterr().out
    for verb in cli.VERBS:
        assert verb in text
        assert all(option[2:] in text for option in completion.options_of(verb))
