"""The method: task-specific data selection by monosemantic neuronal activations.

Everything here is plain Python over numpy, polars, torch and Arrow. Nothing in this
package imports Dagster, and nothing reads the configuration file: functions take the
frozen models of `mona.spec` or plain values.

In a notebook `import mona` has the names of `__all__`, each loaded when it is first used:
docs/notebook.md shows them in a row. Everything else is imported from its own module.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mona.encoder import Encoder
    from mona.notebook import Sample, encode, explain, export_selection, read_pool
    from mona.prototype import mean_prototype
    from mona.sae import SparseAutoencoder
    from mona.sample import Message
    from mona.selection import select
    from mona.similarity import score_codes
    from mona.spec import Budget

try:
    __version__ = version("mona-select")
except PackageNotFoundError:  # run from its folder, not installed
    __version__ = "unknown"

__all__ = [
    "Budget",
    "Encoder",
    "Message",
    "Sample",
    "SparseAutoencoder",
    "encode",
    "explain",
    "export_selection",
    "mean_prototype",
    "read_pool",
    "score_codes",
    "select",
]
_MODULES = {
    "Budget": "spec",
    "Encoder": "encoder",
    "Message": "sample",
    "SparseAutoencoder": "sae",
    "mean_prototype": "prototype",
    "score_codes": "similarity",
    "select": "selection",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mona' has no attribute '{name}'")
    value = getattr(import_module(f"mona.{_MODULES.get(name, 'notebook')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
