"""The `fcn` command and `convert-weights`: parse, call, print. Each command's module is imported on use.

Results go to standard output, progress and remarks to standard error. Exit codes: 0 good, 1 a check failed,
2 bad input (one line `error: where: found; wanted; what to do`), 130 interrupted, 141 the reader of our
output has gone. Anything else is a bug of ours and shows its traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from caffe_weights import __version__
from caffe_weights.errors import InputError

EXIT_CHECK_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

# Command -> (its module under reproduce.commands, one line for `fcn --help`)
COMMANDS = {
    "demo": ("demo", "Convert, cut, check and run the small model that ships with the package."),
    "convert-weights": ("convert_weights", "Convert a weight file; --convolutional cuts the classifier."),
    "inspect": ("inspect", "List what a prototxt or a weight file holds; --check scans the values."),
    "explain-crop": ("explain_crop", "Say where every crop offset of a net comes from."),
    "run": ("run", "Run a net on arrays or pictures and keep its blobs."),
    "segment": ("segment", "Label every pixel of pictures."),
    "show-activations": ("show_activations", "Draw what the unpooling and deconvolution layers of a net do."),
    "crf": ("crf", "Sharpen a segmentation by the fully connected CRF."),
    "score": ("score", "Score label maps: accuracy and IU, in total and of each class."),
    "classify": ("classify", "Name the most probable classes of pictures."),
    "net": ("net", "Print the prototxt of a published net."),
    "solver": ("solver", "Print the solver prototxt of a published net."),
    "start": ("start", "Make the starting weights of a net from those of its predecessor."),
    "fold-bn": ("fold_bn", "Fold the statistics of many batches into DeconvNet's BN layers."),
    "parity": ("parity", "Compare a net with another run of it, blob by blob; name the guilty layer."),
    "audit": ("audit", "Give every published number a verdict: what it takes, and what we get."),
    "train": ("train", "Train a published net on a data set, or any net by its solver file."),
    "evaluate": ("evaluate", "Score a net on a data set: the four metrics and the loss."),
    "upper-bound": ("upper_bound", "The best scores that a prediction of a stride can reach."),
    "data": ("data", "Check a data set; make DeconvNet's training data from one."),
    "search": ("search", "Search for an Auto-DeepLab on a data set."),
    "draw-architecture": ("draw_architecture", "Draw path and cell of an Auto-DeepLab."),
    "summary": ("summary", "Shapes, parameters, multiply-adds and receptive fields of a net."),
}


class _ReaderGoneError(Exception):
    """Nobody reads our standard output any more."""


class OneLineErrors(click.Command):
    """A command whose errors are one line on standard error, with our exit codes."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """As in click, but with our errors and exit codes when it stands alone."""
        run: Callable[..., Any] = super().main
        if not standalone_mode:
            return run(*args, standalone_mode=False, **extra)
        try:
            code = run(*args, standalone_mode=False, **extra)
        except click.ClickException as error:
            if isinstance(error, click.exceptions.NoArgsIsHelpError):  # its help as it is, not in one line
                error.show()
                sys.exit(EXIT_BAD_INPUT)
            message = error.format_message().rstrip(".")
            _fail(message[:1].lower() + message[1:] + _help_hint(error))
        except InputError as error:
            _fail(str(error))
        except click.Abort:
            click.echo("interrupted", err=True)
            sys.exit(EXIT_INTERRUPTED)
        except _ReaderGoneError:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - so that Python's own last flush is quiet
            sys.exit(EXIT_BROKEN_PIPE)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """As in click, but a reader that has gone is told apart from a failure."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            raise _ReaderGoneError from None  # click would take it for a failure and exit with 1
        except EOFError as error:
            raise RuntimeError("a file ended early") from error  # click would take it for Ctrl-D
        return result


class LazyGroup(OneLineErrors, click.Group):
    """A group that knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of this name."""
        return load_command(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list for --help, without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fcn")
def cli() -> None:
    """Read Caffe models, cut them fully convolutional, run them in PyTorch number for number.

    `fcn COMMAND --help` documents each command and the keys of its --json.
    Exit codes: 0 good, 1 a check failed, 2 bad input.
    """


def load_command(name: str) -> click.Command:
    """The click command `name`, a key of COMMANDS."""
    command: click.Command = import_module(f"reproduce.commands.{COMMANDS[name][0]}").command
    return command


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Entry point of `fcn` and of `python -m reproduce`."""
    cli.main(args=args, prog_name="fcn")
    raise SystemExit


def convert_weights_main(args: Sequence[str] | None = None) -> NoReturn:
    """Entry point of `convert-weights`, the same as `fcn convert-weights`."""
    load_command("convert-weights").main(args=args, prog_name="convert-weights")
    raise SystemExit


def _fail(message: str) -> NoReturn:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(EXIT_BAD_INPUT)


def _help_hint(error: click.ClickException) -> str:
    ctx = getattr(error, "ctx", None)
    return f"; see '{ctx.command_path} --help'" if ctx is not None else ""
