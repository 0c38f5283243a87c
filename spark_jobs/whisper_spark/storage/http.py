"""HTTP requests that obstore cannot make, with its settings for certificates and proxies."""

from __future__ import annotations

import contextlib
import ssl
import urllib.request
from collections.abc import Mapping
from typing import Any

TIMEOUT_SECONDS = 60
"""Longest time without an answer, in seconds."""


def opener(config: Mapping[str, str]) -> urllib.request.OpenerDirector:
    """A client with the settings ``root_certificate``, ``allow_invalid_certificates`` and ``proxy_url``.

    It follows no redirects, because a credential must not go to another host.

    :param config: see :class:`whisper_spark.storage.objects.ObjectStorage`. Without ``proxy_url``, the
        environment determines the proxy.
    """
    context = ssl.create_default_context()
    with contextlib.suppress(KeyError):
        context.load_verify_locations(cadata=config["root_certificate"])
    if config.get("allow_invalid_certificates") == "true":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    https = urllib.request.HTTPSHandler(context=context)
    handlers: list[urllib.request.BaseHandler] = [https, _NoRedirects()]
    if "proxy_url" in config:
        handlers.append(urllib.request.ProxyHandler(dict.fromkeys(("http", "https"), config["proxy_url"])))
    return urllib.request.build_opener(*handlers)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Make the answer an error instead."""


def without_proxy_for(host: str, config: Mapping[str, str]) -> dict[str, str]:
    """Settings with which obstore connects to one host directly, and to others through the proxy as before.

    Empty when there is no proxy. A proxy that the environment gives for ``http://`` only is used for all.
    """
    environment = urllib.request.getproxies_environment()
    proxies = (config.get("proxy_url"), *(environment.get(name) for name in ("https", "all", "http")))
    proxy = next(filter(None, proxies), None)
    if proxy is None:
        return {}
    excludes = config.get("proxy_excludes") or environment.get("no", "")
    return {"proxy_url": proxy, "proxy_excludes": f"{host},{excludes}".rstrip(",")}
