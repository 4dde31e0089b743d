"""Parse the command line of main.py: DeiT's flags under DeiT's names, and those of token fusion.

Nothing here imports PyTorch, which takes seconds, so a wrong flag is reported at once.
"""

import sys

from training.settings.config_file import read_config
from training.settings.conflicts import conflicts
from training.settings.fusion_recipe import with_recipe
from training.settings.over_run import parse_over
from training.settings.parser import Parser
from training.settings.settings import DEFAULT_RECIPE, RECIPES, Settings
from training.settings.unused import accept_published, set_aside


def get_args_parser(settings: type[Settings] = Settings) -> Parser:
    """Build the parser of main.py."""
    about = "Train Vision Mamba with token fusion. Words of a flag may be joined by - or _."
    parser = Parser(settings, "main.py", about, usage="python main.py [FLAGS]")
    accept_published(parser)
    return parser


def parse_args(argv: list[str] | None = None, parser: Parser | None = None, run: dict | None = None) -> Settings:
    """Parse a command line and check the flags against each other; end the program with one line if they are wrong.

    Args:
        argv: Words of the command line; sys.argv if None.
        parser: For a program with more flags; the parser of main.py if None.
        run: Settings of a run; its model, data and fusion count unless flags override them (parse_over).
    """
    parser = parser or get_args_parser()
    argv = sys.argv[1:] if argv is None else argv
    given, said = parser.read(argv), parser.said(argv)
    if given.config:
        argv = [*read_config(parser, "--config", given.config, argv), *argv]
        given = parser.read(argv)
    if given.recipe != DEFAULT_RECIPE:
        argv = [*read_config(parser, "--recipe", RECIPES / f"{given.recipe}.yaml", argv), *argv]
    settings = set_aside(parser.read(with_recipe(parser, argv)), said) if run is None else parse_over(parser, argv, run)
    for message in conflicts(settings):
        parser.error(f"argument {message}")
    return settings
