"""The versions of what is stored.

Each is part of the fingerprint that names a table, so that after an upgrade old rows and new ones
never meet. Raise one whenever a stored value changes what it says: then what stands on it is
stale, and is made anew in a table of its own. What a conversation becomes as tokens has its
version beside it, `mona.tokens.RENDERING_VERSION`.
"""

from __future__ import annotations

from collections.abc import Iterable

# Which stream of a block is read, and what it is before anything is made of it: `mona.encoder`.
STREAMS = 1
# The dense views, `mona.views`.
VIEWS = {"mean": 1, "weighted_mean": 1, "mlp_topk": 1}
# Which latents of a token are kept, and how tokens are pooled: `mona.sae`.
CODES = 1
# The mean over a target's examples: `mona.prototype`.
PROTOTYPE = 1


def of_views(views: Iterable[str]) -> dict[str, int]:
    """The versions of these views."""
    return {view: VIEWS[view] for view in views}
