"""Every error a user can cause or meet, under one root, and how a command reports it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class MillipruneError(Exception):
    """Root of all our errors. Its text says what was given, what is expected and what to do next."""


class TraceError(MillipruneError):
    """A module holds something whose channel structure we cannot follow."""


class WidthsError(MillipruneError):
    """A width vector does not fit its network."""


class DeviceUnavailable(MillipruneError):
    """The device cannot be used on this machine as it stands."""


class MeasurementError(MillipruneError):
    """The device refused a model or could not measure it."""


class TableError(MillipruneError):
    """A latency table is missing, broken, of a newer schema or of another device."""


class PredictionError(MillipruneError):
    """No row and no regressor covers what is to be predicted."""


@contextmanager
def reported_by_command(resume_hint: str = "Run the same command again to go on.") -> Iterator[None]:
    """Turn our errors into one sentence and exit code 2, and ctrl-C into a hint and exit code 130."""
    try:
        yield
    except MillipruneError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"\ninterrupted; nothing finished is lost. {resume_hint}", file=sys.stderr)
        raise SystemExit(130) from None
