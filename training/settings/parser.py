"""Parse a command line, and explain mistakes in one helpful line."""

import argparse
import sys
from typing import Any, NoReturn

from training.settings.failure import fail, nearest
from training.settings.flag import add_flags
from training.settings.kinds import key_value


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Show a default only if it says more than "off"."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36, width=118)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, "") else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Read settings from a command line: hyphens and underscores alike, no abbreviations, errors in one line.

    Args:
        settings: The dataclass that declares the flags.
        program: The program that the user starts.
        description: One line for --help.
        usage: Written by argparse if None.
    """

    def __init__(self, settings: type, program: str, description: str, usage: str | None = None) -> None:
        super().__init__(
            program, usage=usage, description=description, allow_abbrev=False, formatter_class=HelpFormatter
        )
        self.settings = settings
        add_flags(self, settings)

    def read(self, args: list[str] | None = None) -> Any:
        """Return the settings that a command line gives; it is sys.argv if None."""
        return self.settings(**vars(self.parse_args(args)))

    def parse_args(self, args: list[str] | None = None, namespace: argparse.Namespace | None = None):
        args = [self._spelling(arg) for arg in (sys.argv[1:] if args is None else args)]
        namespace, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unknown argument {unknown[0]}{nearest(unknown[0], self._shown())}")
        return namespace

    def _shown(self) -> list[str]:
        """Return the flags that --help shows."""
        return [flag for flag, action in self._option_string_actions.items() if action.help != argparse.SUPPRESS]

    def _spelling(self, arg: str) -> str:
        """Return a word of a command line with the flag's registered spelling, whether - or _ joins its words."""
        name, equals, value = arg.partition("=")
        registered = {option.replace("_", "-"): option for option in self._option_string_actions}
        return registered.get(name.replace("_", "-"), name) + equals + value if name.startswith("--") else arg

    def said(self, args: list[str]) -> set[str]:
        """Return the names, as in the namespace, of the flags that a command line gives."""
        unsaid, names = object(), [action.dest for action in self._actions if action.default != argparse.SUPPRESS]
        namespace = self.parse_args(args, argparse.Namespace(**dict.fromkeys(names, unsaid)))
        return {name for name, value in vars(namespace).items() if value is not unsaid}

    def meaning(self, name: str) -> str | None:
        """Return the name in the namespace that a flag sets, None if there is no such flag."""
        action = self._option_string_actions.get(self._flag(name))
        return action.dest if action else None

    def _flag(self, name: str) -> str:
        """Return a flag's registered spelling, given its name without leading hyphens or the name that it sets."""
        flag = self._spelling(f"--{name}")
        named = {action.dest: option for option, action in reversed(self._option_string_actions.items())}
        return flag if flag in self._option_string_actions else named.get(name, flag)

    def words(self, name: str, value: object) -> list[str]:
        """Return a flag and its value as words of a command line.

        A switch is `true` or `false`, a list gives several values, and `null` leaves the flag out. A flag of KEY=VALUE
        also takes a table.

        Args:
            name: The flag's name without leading hyphens.
            value: Text, a list of texts, or a table of texts.

        Raises:
            ValueError: There is no such flag, or it does not take the value.
        """
        flag = self._flag(name)
        action = self._option_string_actions.get(flag)
        if action is None:
            raise ValueError(f"unknown {name}{nearest(flag, self._shown())}")
        if action.type is key_value and isinstance(value, dict):
            value = [f"{key}={part}" if isinstance(part, str) else part for key, part in value.items()]
        if not all(isinstance(part, str) for part in (value if isinstance(value, list) else [value])):
            raise ValueError(f"{name}: is a value or a list of values, without tables or lists inside")
        if value in ("null", "~", ""):
            return []
        if action.nargs == 0:
            if value not in ("true", "false"):
                raise ValueError(f"{name}: is true or false, not {value}")
            flags = [option for option, other in self._option_string_actions.items() if other.dest == action.dest]
            opposites = [other for other in flags if other.startswith("--no") != flag.startswith("--no")]
            return [flag] if value == "true" else opposites[:1]
        if isinstance(value, list) and action.nargs is not None:
            return [flag, *value]
        return [f"{flag}={','.join(value) if isinstance(value, list) else value}"]

    def as_said(self, name: str, value: object, what: str) -> object:
        """Return a setting that was read from a file or checkpoint as its flag would give it.

        Args:
            name: Its name in the namespace.
            value: A number, a text, a list of them, or None if the flag may be left out.
            what: How the user knows the setting, for messages.

        Raises:
            ValueError: The flag does not take the value.
        """
        action = next(action for action in self._actions if action.dest == name)
        if value is None and action.default is None:
            return None
        if action.nargs == 0 and isinstance(value, bool):
            return value
        parts = value if isinstance(value, list | tuple) else [value]
        several = action.nargs is not None
        if several != (parts is value) or not parts or not all(isinstance(part, str | int | float) for part in parts):
            raise ValueError(f"{what}: is not a value of {action.option_strings[0]}")
        try:
            found = [self._get_value(action, str(part)) for part in parts]
            for part in found:
                self._check_value(action, part)
            namespace = argparse.Namespace()
            action(self, namespace, found if several else found[0], action.option_strings[0])
        except argparse.ArgumentError as error:
            raise ValueError(f"{what}: {error.message}") from None
        return getattr(namespace, name)

    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see --help)", program=self.prog)
