"""Sweeps on W&B's server: whether it may be asked at all, what it has of one, and registering one.

Every failure is a `UserError` of one line, in a stated time: a server that refuses the key, is broken, busy, silent or
gone. wandb is imported inside functions (0.4 s).
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import urllib.parse
from dataclasses import dataclass
from typing import Any

from model.errors import ConfigError, UserError
from sweep.blocks import WandbSettings
from sweep.faults import MachineError
from sweep.wandb_client import bounded, reset_client
from sweep.wandb_mode import resolve_mode
from sweep.wandb_runs import NoSuchSweepError, config_of

CONFIG_LIMIT_S = 60.0  # for the server to tell a sweep's config
RETRIES = 1  # of wandb's own, for each request; by default it goes on for days
INSTEAD = "Nothing was started here. Without a server, python -m sweep.run runs it here."
_TRIES_TO_CREATE = 5  # wandb asks as newer, then as older servers understand it, also after an answer of 500
_SWEEP = re.compile(r"([^/:;,#?'\\%]+/){0,2}(?!-)[\w-]+")
_KEY_SHOWN = "<the key>"
_MEANINGS = {  # of wandb's messages
    r"\b(HTTP|error|status)\W*(401|403)\b": "refuses the key: run `wandb login`, or set WANDB_API_KEY to one of it.",
    r"\bHTTP\W*429\b": "asks to wait (HTTP 429, too many requests): try again in a minute.",
    r"\bHTTP\W*5\d\d\b": "is out of order (an answer of HTTP 5xx): try again later.",
    r"\bbase_url\b": "is no usable address: set WANDB_BASE_URL to one such as https://wandb.example.org.",
    r"connection refused|no such host|no route|network is unreachable": "cannot be reached: check WANDB_BASE_URL and "
    "the network.",
}


class ServerError(UserError):
    """W&B's server did not do what was asked."""


@dataclass(frozen=True)
class CreatedSweep:
    """A sweep that W&B's server has registered."""

    id: str
    entity: str
    project: str
    url: str
    """Of its page."""

    @property
    def path(self) -> str:
        """As `wandb agent` takes it."""
        return f"{self.entity}/{self.project}/{self.id}"


def check_online(settings: WandbSettings) -> None:
    """Whether W&B's server can be asked. Raises UserError, and asks nothing, where mode or credentials forbid it."""
    resolved, reason = resolve_mode(settings.mode)
    if resolved == "online":
        return
    if reason.startswith("no credentials"):
        host = reason.removeprefix("no credentials for ").partition(" ")[0]
        raise UserError(
            f"wandb: no credentials for {host}: run `wandb login`, or set WANDB_API_KEY (of a server of your own, "
            "WANDB_BASE_URL too). Without an account, python -m sweep.run runs the sweep here."
        )
    raise UserError(
        f"wandb: W&B's sweeps exist online only, but {reason}; set it to online, or run the sweep here, where it also "
        "works offline: python -m sweep.run"
    )


def sweep_path(text: str) -> str:
    """A sweep's id as `wandb agent` takes it. Raises ConfigError for another form, with a guess for a web address."""
    if _SWEEP.fullmatch(text):
        return text
    guess = ""
    if address := re.search(r"//[^/]+/([^/]+)/([^/]+)/sweeps/([\w-]+)", text):
        guess = f"; did you mean {'/'.join(address.groups())}?"
    raise ConfigError(f"sweep {text!r}: must be SWEEP, PROJECT/SWEEP or ENTITY/PROJECT/SWEEP, as W&B shows it{guess}")


def config_on_server(sweep: str) -> dict[str, Any]:
    """The W&B config of a sweep. Raises UserError: there is no such sweep; MachineError: the server did not tell it."""
    try:
        return bounded(lambda: config_of(sweep), CONFIG_LIMIT_S)
    except NoSuchSweepError:
        raise
    except (UserError, TimeoutError) as error:
        raise MachineError(f"{error}; try again") from None
    finally:
        reset_client()


def create_sweep(config: dict[str, Any], entity: str | None, project: str, timeout_s: float) -> CreatedSweep:
    """Register a sweep. Takes `timeout_s` at most, and some seconds to end wandb's service where it hangs.

    Args:
        config: see `sweep.wandb_config`.
        entity: the account's default entity if None.

    Raises:
        ServerError: the server refused, failed, or said nothing in time; in the last case it may have registered the
            sweep all the same.
    """
    try:
        return bounded(lambda: _create(config, entity, project, timeout_s), timeout_s)
    except TimeoutError:
        raise ServerError(
            f"wandb: {_address()} gave no usable answer in {timeout_s:g} s (wandb.init_timeout_s); its page of the "
            f"project shows whether it registered the sweep all the same. {INSTEAD}"
        ) from None
    except Exception as error:
        raise ServerError(f"wandb: {_address()} {_what(_brief(error))} {INSTEAD}") from None
    finally:
        reset_client()


def _create(config: dict[str, Any], entity: str | None, project: str, timeout_s: float) -> CreatedSweep:
    import wandb

    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else it is reported to the server, with its own limits
    each_s = timeout_s / (_TRIES_TO_CREATE * (RETRIES + 1))
    settings = wandb.setup(
        wandb.Settings(
            silent=True,
            x_graphql_retry_max=RETRIES,
            x_graphql_retry_wait_min_seconds=min(each_s, 0.5),
            x_graphql_retry_wait_max_seconds=min(each_s, 1.0),
        )
    ).settings
    before = {name: os.environ.get(name) for name in ("WANDB_ENTITY", "WANDB_PROJECT")}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # what it prints is printed by us
            sweep_id = wandb.sweep(config, entity=entity, project=project)
        # where the server put it; wandb leaves that in the environment
        entity = os.environ.get("WANDB_ENTITY") or entity or wandb.Api().default_entity or ""
        project = os.environ.get("WANDB_PROJECT") or project
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    place = "/".join(urllib.parse.quote(part) for part in (entity, project, "sweeps", sweep_id))
    url = f"{str(settings.app_url).rstrip('/')}/{place}"
    return CreatedSweep(sweep_id, entity, project, url)


def _address() -> str:
    return os.environ.get("WANDB_BASE_URL") or "W&B's server"


def _brief(error: Exception) -> str:
    """An error in one line, without the key."""
    text = " ".join(str(error).split()) or type(error).__name__
    key = os.environ.get("WANDB_API_KEY")
    return text.replace(key, _KEY_SHOWN) if key and key.strip() else text


def _what(text: str) -> str:
    """What a message of wandb means, and what to do."""
    for pattern, meaning in _MEANINGS.items():
        if re.search(pattern, text):
            return meaning
    return f"did not register the sweep: {text[:300].rstrip('.')}."
