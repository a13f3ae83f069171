"""The exception tree and its exit codes.

Every error that a user can cause has four parts: what happened, which case or key it concerns, why it matters, and how
to fix it. Commands print the four parts without a traceback and leave with ``exit_code``.
"""

from __future__ import annotations

from cmt_med.base.text import visible

EXIT_DONE = 0
EXIT_SOME_FAILED = 2
EXIT_USAGE = 64
EXIT_DATA = 65
EXIT_BUG = 70
EXIT_OUTPUT = 73
EXIT_INTERRUPTED = 75


class CmtError(Exception):
    """Base of all errors that the package raises on purpose.

    Args:
        what: one clause that says what happened.
        where: the case, file, key or option concerned.
        why: why the package does not go on; where nothing is given, the reason common to errors of this kind.
        fix: what the user can do; likewise.

    Attributes:
        case: name of the one case that it concerns, where it is known, in valid UTF-8.
    """

    code = "E_INTERNAL"
    exit_code = EXIT_BUG
    usual_why = "the result could not be trusted"
    usual_fix = "report it with the log"

    def __init__(self, what: str, *, where: str = "", why: str = "", fix: str = "", code: str | None = None) -> None:
        self.what, self.where, self.why, self.fix = what, where, why or self.usual_why, fix or self.usual_fix
        self.case = ""
        if code is not None:
            self.code = code
        super().__init__(self.message())

    def message(self) -> str:
        """The parts, one per line, with absent parts left out, and what a file's name could do to a terminal spelled out."""
        parts = [f"[{self.code}] {_on_one_line(self.what)}"]
        for label, text in (("where", self.where), ("why", self.why), ("fix", self.fix)):
            if text:
                parts.append(f"  {label}: {_on_one_line(text)}")
        return "\n".join(parts)

    def as_dict(self) -> dict[str, str]:
        """The parts by name, for ``failures.json``."""
        return {"code": self.code, "what": self.what, "where": self.where, "why": self.why, "fix": self.fix}

    def within(self, where: str) -> CmtError:
        """The same error with a wider place named before its own, such as the case that a file belongs to."""
        error = type(self)(self.what, where=f"{where}: {self.where}", why=self.why, fix=self.fix, code=self.code)
        error.case = self.case
        return error

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (data workers); the default would call __init__ with the message alone.
        return _rebuild, (type(self), self.what, self.where, self.why, self.fix, self.code), {"case": self.case}


def _on_one_line(text: str) -> str:
    return visible(text)


def _rebuild(kind: type[CmtError], what: str, where: str, why: str, fix: str, code: str) -> CmtError:
    return kind(what, where=where, why=why, fix=fix, code=code)


class ConfigError(CmtError):
    """The command line or the configuration is wrong."""

    code = "E_CONFIG"
    exit_code = EXIT_USAGE
    usual_why = "it cannot be used as it is"
    usual_fix = "see --help, and the files in configs/"


class DataError(CmtError):
    """A file, a case or a case list is wrong; ``code`` names the fault (E_GRID, E_NONFINITE, ...)."""

    code = "E_DATA"
    exit_code = EXIT_DATA
    usual_why = "nothing is computed from data that could be misread"
    usual_fix = "correct the file, or leave it out"


class OutputError(CmtError):
    """A result cannot be written."""

    code = "E_OUTPUT"
    exit_code = EXIT_OUTPUT
    usual_why = "results would be lost"
    usual_fix = "give another --output, or make room"


class Interrupted(CmtError):
    """The run was asked to stop; the same command resumes it."""

    code = "E_INTERRUPTED"
    exit_code = EXIT_INTERRUPTED


class NetworkError(ConfigError):
    """A network was asked for with arguments that do not fit together."""

    code = "E_NETWORK"
    usual_why = "the network cannot be built or used with it"
