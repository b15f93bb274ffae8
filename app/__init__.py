"""The web app `dreambooth app`: rooms that call what the command line calls.

It keeps no state in the browser: what a page shows comes from the workspace's files and from the
servers, so a page that is opened again shows the present state.
"""
