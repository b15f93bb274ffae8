"""Runs the web server: access, the rooms, pictures; nothing from other hosts."""

from __future__ import annotations

from nicegui import app as web
from nicegui import ui

from app import layout, mask_routes, pictures, uploads
from app.access import AccessControl
from app.rooms import (
    add_subject,
    judge,
    mask,
    registry,
    result,
    settings,
    subjects,
    train,
)
from app.site import Site

ROOMS = (subjects, add_subject, mask, train, settings, result, judge, registry)
"""The modules of the rooms: each adds its pages with `add_to(site)`."""

_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" '
    'rx="8" fill="#2f5fd0"/><circle cx="16" cy="16" r="7" fill="none" stroke="#fff" '
    'stroke-width="3"/></svg>'
)


def serve(site: Site) -> None:
    """Serve the app until Ctrl-C or SIGTERM."""
    layout.add_look()
    pictures.add_to(site)
    uploads.add_to(site)
    mask_routes.add_to(site)
    for room in ROOMS:
        room.add_to(site)
    web.add_middleware(AccessControl, password=site.password)
    ui.run(
        host=site.host,
        port=site.port,
        title="DreamBooth",
        favicon=_ICON,
        dark=None,
        language="en-US",
        reload=False,
        show=False,
        show_welcome_message=False,
        tailwind=False,
        binding_refresh_interval=None,
    )
