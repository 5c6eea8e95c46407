"""What leaves the house by itself: failures and taints, posted to the configured webhook."""

from __future__ import annotations

import json
import os
import urllib.request
from typing import Any

import dagster as dg

from mona.errors import RequestError, WorkError
from orchestration.config import Config

_TIMEOUT_SECONDS = 10


def post(config: Config, notice: dict[str, Any]) -> bool:
    """Posts a notice as JSON; False when no webhook is configured.

    RequestError when its variable is not set, WorkError when it does not take the notice.
    """
    variable = config.automation.webhook
    if variable is None:
        return False
    url = os.environ.get(variable)
    if not url:
        raise RequestError(f"automation.webhook: the environment variable {variable} is not set")
    if not url.startswith(("https://", "http://127.0.0.1:", "http://localhost:")):
        raise RequestError(f"automation.webhook: {variable} is no https URL")
    request = urllib.request.Request(
        url, json.dumps(notice).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):
            return True
    except OSError as error:
        # The URL may hold a token: it is not shown.
        raise WorkError(f"the webhook in {variable} does not answer: {error}") from error


def build_failure_sensor(config: Config) -> list[dg.SensorDefinition]:
    """Posts every failed run; none without a webhook."""
    if config.automation.webhook is None:
        return []

    @dg.run_failure_sensor(
        name="failures",
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Posts failed runs to the webhook.",
    )
    def failures(context: dg.RunFailureSensorContext) -> None:
        run = context.dagster_run
        post(
            config,
            {
                "event": "run failed",
                "run": run.run_id,
                "assets": sorted(key.to_user_string() for key in run.asset_selection or ()),
                "partition": run.tags.get("dagster/partition"),
                "reason": first_reason(context),
            },
        )

    return [failures]


def first_reason(context: dg.RunFailureSensorContext) -> str:
    """The first line of the step failure that is the cause."""
    for event in context.get_step_failure_events():
        error = getattr(event.event_specific_data, "error", None)
        while error is not None and error.cause is not None:
            error = error.cause
        if error is not None:
            return str(error.message).strip().splitlines()[0]
    return str(context.failure_event.message or "unknown")
