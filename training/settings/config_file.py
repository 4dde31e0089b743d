"""Read flags from a file: YAML of flags and values, a recipe, or the args.json of a run to repeat."""

from dataclasses import fields
from itertools import chain
from pathlib import Path

from training.settings.facts import Facts
from training.settings.flag import groups, names
from training.settings.kinds import with_names_of_now
from training.settings.over_run import taken_over
from training.settings.parser import Parser
from training.settings.settings import Settings

FACTS = {each.name for each in fields(Facts)}


def read_config(parser: Parser, flag: str, path: str | Path, argv: list[str]) -> list[str]:
    """Return a file's flags and values as words of a command line, without flags that the command line itself gives.

    End the program with one line if they are wrong.

    Args:
        parser: Knows the flags.
        flag: The flag that named the file.
        path: The file.
        argv: The command line.
    """
    import yaml  # comes with timm, and nothing else here needs it

    said = parser.said(argv)
    try:
        # Keep all values as they are written: YAML would read the strategy `no` as false.
        values = yaml.load(Path(path).read_text(), yaml.BaseLoader)
        if not isinstance(values, dict):
            raise ValueError("holds no flags with values")
        if FACTS & values.keys():
            values = repeated(parser.read(argv), said, with_names_of_now(values))
        words = [(parser.meaning(name), parser.words(name, value)) for name, value in values.items()]
        return [word for meaning, some in words if meaning not in said for word in some]
    except RecursionError:
        parser.error(f"argument {flag}: {path}: its lists are too deep")
    except OSError as error:
        parser.error(f"argument {flag}: {path}: {error.strerror}")
    except (TypeError, ValueError, yaml.YAMLError) as error:
        parser.error(f"argument {flag}: {path}: {error}")


def repeated(given: Settings, said: set[str], run: dict) -> dict:
    """Return the flags in a run's args.json that repeat it in another run, unless the command line overrides them."""
    starts, led = names(Settings, repeated=False), chain(*groups(Settings).values())
    left_out = {*FACTS, *starts, *led} - taken_over(given, said, run).keys()
    if given.finetune:
        left_out |= {"pretrained", "finetune_ema", "resume", "start_epoch"}  # other weights to start from
    if "data_path" in said and "/" not in run.get("data_set", ""):
        left_out.add("nb_classes")  # the run's own images had so many; others tell how many they have
    if Path(run.get("resume", "")).parent.resolve() == Path(run.get("output_dir", "")).resolve():
        left_out.add("resume")  # it resumed from its own checkpoint
    return {name: value for name, value in run.items() if name not in left_out}
