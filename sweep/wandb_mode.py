"""Whether W&B is online here: the mode asked for, settings files, credentials. Does not import wandb (0.4 s)."""

from __future__ import annotations

import configparser
import netrc
import os
from contextlib import suppress
from pathlib import Path
from typing import Literal, cast, get_args

from model.errors import ConfigError

RequestedMode = Literal["auto", "online", "offline", "disabled"]
Mode = Literal["online", "offline", "disabled"]

# of W&B's cloud: the one that wandb 0.31 asks and `wandb login` writes down, and the one of earlier versions, whose
# credentials it takes too
CLOUD_HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")
DEFAULT_BASE_URL = f"https://{CLOUD_HOSTS[0]}"
_OLD_MODE_NAMES = {"run": "online", "dryrun": "offline"}  # still taken by wandb in WANDB_MODE


def resolve_mode(mode: RequestedMode) -> tuple[Mode, str]:
    """What `mode` means here, and why (one line for the user). Asks nothing, starts nothing, uses no network.

    auto follows WANDB_MODE, then the mode in wandb's settings files; where neither decides, it is online if there are
    credentials for the server, else offline. online without credentials is offline too: wandb would ask for a key.

    Raises:
        ConfigError: an unknown mode.
    """
    if mode not in get_args(RequestedMode):
        raise ConfigError(f"wandb.mode = {mode!r}; must be one of: {', '.join(get_args(RequestedMode))}.")
    settings = settings_files()
    wanted, origin = _wanted(mode, settings)
    if wanted in ("offline", "disabled"):
        return wanted, f"{origin} says {wanted}"
    base_url = os.environ.get("WANDB_BASE_URL") or settings.get("base_url") or DEFAULT_BASE_URL
    host = base_url.rpartition("://")[2].partition("/")[0]
    source = _credentials(host, settings)
    if source:
        return "online", f"{host}, with the credentials of {source}"
    return "offline", f"no credentials for {host} (to go online: wandb login, or set WANDB_API_KEY)"


def _wanted(mode: RequestedMode, settings: dict[str, str]) -> tuple[Mode | Literal["auto"], str]:
    if mode != "auto":
        return mode, "wandb.mode"
    places = {"WANDB_MODE": os.environ.get("WANDB_MODE", ""), "wandb's settings file": settings.get("mode", "")}
    for origin, value in places.items():
        named = _OLD_MODE_NAMES.get(value, value)
        if named in get_args(Mode):
            return cast(Mode, named), origin
    return "auto", ""


def settings_files() -> dict[str, str]:
    """wandb's own settings: the user's file, then the one of this folder, which wins. Unreadable ones are empty."""
    user = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb", "settings")
    here = Path(".wandb" if Path(".wandb").exists() else "wandb", "settings")
    settings: dict[str, str] = {}
    for path in (user, here):
        with suppress(OSError, UnicodeDecodeError, configparser.Error, RuntimeError):  # RuntimeError: no home folder
            parser = configparser.ConfigParser()
            parser.read(path.expanduser(), encoding="utf-8")
            settings.update(parser.items("default"))
    return settings


def _credentials(host: str, settings: dict[str, str]) -> str | None:
    """Where credentials for the server are found, in the order in which wandb looks; None where there are none."""
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if os.environ.get(variable):
            return variable
    with suppress(OSError, UnicodeDecodeError, netrc.NetrcParseError, RuntimeError):
        path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
        known = netrc.netrc(str(path))
        for name in CLOUD_HOSTS if host in CLOUD_HOSTS else (host,):
            entry = known.authenticators(name)
            if entry and entry[2]:
                return str(path)
    return "wandb's settings file" if settings.get("api_key") else None
