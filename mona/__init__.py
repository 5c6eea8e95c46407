"""The method: task-specific data selection by monosemantic neuronal activations.

Everything here is plain Python over numpy, polars, torch and Arrow. Nothing in this
package imports Dagster, and nothing reads the configuration file: functions take the
frozen models of `mona.spec` or plain values.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("mona-select")
except PackageNotFoundError:  # run from its folder, not installed
    __version__ = "unknown"
